"""Load a finetuned model and score one patient for every task. Only transformers is needed.

python examples/1_load_and_score.py demo/mpf
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()

# A patient is a birth date and visits in order; a visit is still open where its end is None.
patient = {
    "birth": "1951-04-02",
    "visits": [
        {
            "start": "2021-03-01T09:30",
            "end": "2021-03-06T11:00",
            "events": [
                {"code": "RXNORM/29046", "time": "2021-03-01T10:00"},  # lisinopril
                {
                    "code": "LOINC/2160-0",  # creatinine
                    "value": 1.9,
                    "unit": "mg/dL",
                    "time": "2021-03-01T11:15",
                },
            ],
        },
        {
            "start": "2021-05-20T17:10",
            "end": None,
            "events": [
                {
                    "code": "LOINC/2524-7",  # lactate
                    "value": 4.1,
                    "unit": "mmol/L",
                    "time": "2021-05-20T18:00",
                },
            ],
        },
    ],
}

for task in tokenizer.task_tokens:
    inputs = tokenizer([patient], task=task, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        probability = torch.sigmoid(model(**inputs).logits)[0, 0].item()
    print(f"{task:<16} {probability:.3f}")

print(" ".join(tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])))
