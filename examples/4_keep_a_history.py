"""Keep a patient's state of fixed size, and feed only what is new before predicting again.

python examples/4_keep_a_history.py demo/mpf
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
tasks = [tokenizer.task_token_id(name) for name in tokenizer.task_tokens]


def lab(code, value, unit, time):
    return {"code": f"LOINC/{code}", "value": value, "unit": unit, "time": time}


events = [lab("2160-0", 1.9, "mg/dL", "2021-03-01T11:15")]
stay = {"start": "2021-03-01T09:30", "end": None, "events": events}
patient = {"birth": "1951-04-02", "visits": [stay]}


def show(when, history):
    probabilities = torch.sigmoid(model.predict_from_history(history))[0]
    print(f"{when}, after {int(history.lengths)} tokens, {history.nbytes} bytes:")
    for name, probability in zip(tokenizer.task_tokens, probabilities, strict=True):
        print(f"  {name:<16} {probability:.3f}")


# The first token of a prompt is the task's, so there is a state for each task.
history = model.encode_history(**tokenizer([patient], return_tensors="pt"), tasks=tasks)
show("on the first day", history)

with tempfile.TemporaryDirectory() as kept:
    history.save(Path(kept) / "patients.safetensors")
    history = type(history).load(Path(kept) / "patients.safetensors")

# New events, and the stay has ended: of the whole sequence, only what is new is fed.
events += [lab("2160-0", 2.4, "mg/dL", "2021-03-03T06:00")]
events += [lab("2524-7", 4.1, "mmol/L", "2021-03-03T06:00")]
stay["end"] = "2021-03-06T11:00"
columns = tokenizer([patient], return_tensors="pt")
new = {name: column[:, int(history.lengths) :] for name, column in columns.items()}
history = model.extend_history(history, **new)
show("at discharge", history)

# The same as a full pass over the prompted sequence, task by task.
logits = model.predict_from_history(history)[0]
for task, expected in zip(tokenizer.task_tokens, logits, strict=True):
    with torch.no_grad():
        logit = model(**tokenizer([patient], task=task, return_tensors="pt")).logits[0, 0]
    assert abs(logit - expected) < 1e-4
