"""How near the tiny model comes to the best possible AUROC, beside gradient boosting.

    python benchmarks/true_risk.py --work /somewhere/with/5GB

Trains on a synthetic hospital of 4,000 patients and judges on another of 5,000, made with another
seed, of which nothing was seen before. The best possible score is the true risk, which the
simulator knows. Gradient boosting counts the tokens of the same inputs and is fitted on the same
finetuning examples. Prints a Markdown table; the paired differences are on the same patients.
"""

import argparse
import platform
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from msgspec.structs import replace

from ehrmamba_hf.baselines import count_examples, fit_predict
from ehrmamba_hf.config import load_config
from ehrmamba_hf.corpus import TaskExamples, load_examples, prepare
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.evaluation import PREDICTION_SCHEMA, evaluate_predictions, write_report
from ehrmamba_hf.evaluation.scoring import load_classifier, score
from ehrmamba_hf.events import ingest
from ehrmamba_hf.simulation import simulate, true_risks_path
from ehrmamba_hf.timelines import SplitRules
from ehrmamba_hf.tokenization.grammar_ehrmamba import SPECIAL_TOKENS
from ehrmamba_hf.training import finetune, pretrain

BASELINE = "gradient boosting"
# Half of the tiny config's, which are for the demo's few patients: with ten times as many, 6 epochs
# overfit (readmission 0.741 and length of stay 0.855, against 0.751 and 0.864 after 3).
EPOCHS = 3
FOLDERS = {"finetune": "data", "finetune_validation": "data", "test": "judged"}


def boosting(train: TaskExamples, test: TaskExamples, vocab_size: int) -> pa.Table:
    """Predictions of one boosted model a task, on the counts of the same inputs' tokens."""
    tables = []
    for task in sorted(set(test.table["task"].to_pylist())):
        counts = []
        for examples in (train, test):
            chosen = pc.indices_nonzero(pc.equal(examples.table["task"], task)).to_pylist()
            rows = (examples.inputs[int(examples.rows[i])] for i in chosen)
            inputs = ((r["input_ids"], r["ages"], r["visit_orders"]) for r in rows)
            labels = examples.labels[chosen] > 0
            counts.append(
                count_examples(
                    inputs, labels, special_tokens=len(SPECIAL_TOKENS), vocab_size=vocab_size
                )
            )
        table = test.table.take(chosen)
        scores = pa.array(fit_predict(counts[0], counts[1]))
        tables.append(table.append_column("probability", scores).select(PREDICTION_SCHEMA.names))
    return pa.concat_tables(tables).cast(PREDICTION_SCHEMA)


def hospital(work: Path, name: str, patients: int, seed: int) -> Path:
    """The events folder of a synthetic hospital, made once."""
    events = work / f"events-{name}"
    if not events.exists():
        simulate(work / name, patients=patients, seed=seed)
        ingest(work / name, events, progress=False)
    return events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=5000)
    work, config = (arguments := parser.parse_args()).work, load_config(arguments.config)
    work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    seen = hospital(work, "seen", arguments.train, 1)
    unseen = hospital(work, "unseen", arguments.test, 2)
    shares = SplitRules(pretrain=0.4, finetune=0.6)  # nobody is kept for testing: others are judged
    prepare(seen, work / "data", replace(config.prepare, splits=shares), progress=False)
    tokenizer = load_tokenizer(work / "data")
    everybody = replace(config.prepare, splits=SplitRules(pretrain=0.0, finetune=0.0))
    prepare(unseen, work / "judged", everybody, tokenizer=tokenizer, progress=False)
    prepared = time.perf_counter()
    model = pretrain(work / "data", work / "model", model=config.model, training=config.pretrain)
    recipe = config.finetune | {"num_train_epochs": EPOCHS}
    mpf = finetune(work / "data", model, work / "mpf", training=recipe)
    trained = time.perf_counter()
    classifier = load_classifier(mpf)
    examples = {
        name: load_examples(work / folder, name, tokenizer=tokenizer)
        for name, folder in FOLDERS.items()
    }
    predictions = {name: score(classifier, tokenizer, examples[name]) for name in examples}
    evaluation = evaluate_predictions(
        predictions["finetune_validation"],
        predictions["test"],
        true_risks=pq.read_table(true_risks_path(work / "unseen")),
        baselines={
            BASELINE: boosting(examples["finetune"], examples["test"], tokenizer.vocab_size)
        },
    )
    write_report(
        work / "report",
        evaluation,
        facts={
            "trained on": f"{arguments.train} patients",
            "judged on": f"{arguments.test} others",
        },
        exclusions={},
        forecast=None,
        load_snippet="",
    )
    size = sum(p.numel() for p in classifier.parameters())
    print(
        f"{size:,} parameters; torch {torch.__version__}, {platform.processor() or 'CPU'}, "
        f"{torch.get_num_threads()} threads; made and prepared in {prepared - start:.0f} s, "
        f"trained in {trained - prepared:.0f} s\n"
    )
    print("| task | examples | best possible | MPF | MPF minus best | gradient boosting |")
    print("|---|---|---|---|---|---|")
    for task in evaluation.judgeable:
        assert task.metrics and task.true_risk
        difference, boosted = task.true_risk.difference, task.baselines[BASELINE]
        print(
            f"| {task.task} | {task.counts.examples:,} | {task.true_risk.auroc.value:.3f} | "
            f"{task.metrics.auroc.value:.3f} | {difference.value:+.3f} "
            f"({difference.low:+.3f} to {difference.high:+.3f}) | {boosted.auroc.value:.3f} |"
        )


if __name__ == "__main__":
    main()
