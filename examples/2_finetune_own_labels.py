"""Finetune a pretrained model on labels of one's own, with the stock Trainer.

    python examples/2_finetune_own_labels.py demo/model my-model

The labels here are made up (is the last lactate high?); put your own in their place. The task uses
one of the tokens that every vocabulary keeps free.
"""

import random
import sys

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

folder, out = sys.argv[1:3]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(
    folder, trust_remote_code=True, num_labels=1
)


def example(seed: int) -> tuple[dict, int]:
    """A patient with one open visit, and a label."""
    lactate = random.Random(seed).uniform(0.5, 6.0)
    event = {
        "code": "LOINC/2524-7",
        "value": lactate,
        "unit": "mmol/L",
        "time": "2022-01-01T09:00",
    }
    visit = {"start": "2022-01-01T08:00", "end": None, "events": [event]}
    return {"birth": "1960-01-01", "visits": [visit]}, int(lactate > 2.5)


def encode(seed: int) -> dict:
    patient, label = example(seed)
    columns = tokenizer(patient, task="[TASK_0]", truncation=True, max_length=512)
    return {**columns, "labels": [float(label)]}


train, test = [encode(i) for i in range(400)], [encode(i) for i in range(400, 500)]
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=f"{out}/checkpoints",
        num_train_epochs=3,
        per_device_train_batch_size=20,
        learning_rate=3e-3,
        save_strategy="no",
        logging_steps=20,
        seed=0,
    ),
    train_dataset=train,
    eval_dataset=test,
    data_collator=DataCollatorWithPadding(tokenizer),
    processing_class=tokenizer,
    compute_metrics=lambda p: {"accuracy": ((p.predictions > 0) == (p.label_ids > 0.5)).mean()},
)
trainer.train()
print(trainer.evaluate())
trainer.save_model(out)
