"""Forecast what comes next in a patient's record, with generate().

python examples/3_forecast.py demo/mpf
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def patient(birth: str, codes: list[str]) -> dict:
    events = [{"code": code, "time": "2021-03-01T10:00"} for code in codes]
    visit = {"start": "2021-03-01T09:30", "end": "2021-03-06T11:00", "events": events}
    return {"birth": birth, "visits": [visit]}


patients = [
    patient("1951-04-02", ["RXNORM/29046", "LOINC/2160-0", "LOINC/2823-3"]),
    patient("1990-11-13", ["RXNORM/83367"]),
]
set_seed(0)
# Patients of unequal length are padded on the left. The attributes of each new token (visit,
# age, weeks) follow from the tokens so far.
prompt = tokenizer(patients, padding=True, return_tensors="pt")
with torch.no_grad():
    output = model.generate(
        **prompt, max_new_tokens=24, do_sample=True, temperature=0.8, top_p=0.95
    )
for number, row in enumerate(output[:, prompt["input_ids"].shape[1] :], 1):
    print(f"patient {number}")
    for line in tokenizer.readable(row):
        print(f"  {line}")
