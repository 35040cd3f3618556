"""The record shows the latent state: boosting on token counts comes close to the true risk.

Labels and inputs are read from the written FHIR alone, without the package's own pipeline.
"""

import json
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from ehrmamba_hf.fhir.identity import subject_id
from ehrmamba_hf.simulation import simulate, true_risks_path

GROUPS = {"condition_0": "I10", "condition_1": "E87", "condition_2": "E78"}


class Stay(NamedTuple):
    start: datetime
    end: datetime
    codes: frozenset[str]


class Hospital(NamedTuple):
    events: dict[int, list[tuple[datetime, str, float | None]]]
    stays: dict[int, list[Stay]]
    deaths: dict[int, datetime]
    risks: list[dict]


def wall(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=None)


def subject(resource: dict) -> int:
    return subject_id(resource["subject"]["reference"].removeprefix("Patient/"))


def load(folder: Path) -> Hospital:
    def read(name: str) -> list[dict]:
        return [json.loads(line) for line in (folder / f"{name}.ndjson").open()]

    def code(concept: dict) -> str:
        return concept["coding"][0]["code"]

    events = defaultdict(list)
    drugs = {f"Medication/{m['id']}": code(m["code"]) for m in read("Medication")}
    for r in read("Observation"):
        if code(r["category"][0]) == "laboratory":
            row = (wall(r["issued"]), code(r["code"]), r["valueQuantity"]["value"])
            events[subject(r)].append(row)
    for r in read("Procedure"):
        events[subject(r)].append((wall(r["performedDateTime"]), code(r["code"]), None))
    for r in read("MedicationRequest"):
        reference = r.get("medicationReference", {}).get("reference")
        drug = drugs[reference] if reference else code(r["medicationCodeableConcept"])
        events[subject(r)].append((wall(r["authoredOn"]), drug, None))
    codes = defaultdict(set)
    for r in read("Condition"):
        codes[r["encounter"]["reference"]].add(code(r["code"])[:3])
    stays = defaultdict(list)
    for r in read("Encounter"):
        if r["class"]["code"] == "IMP":
            period = (wall(r["period"]["start"]), wall(r["period"]["end"]))
            stays[subject(r)].append(Stay(*period, frozenset(codes[f"Encounter/{r['id']}"])))
    died = {subject_id(p["id"]): p["deceasedDateTime"] for p in read("Patient") if len(p) > 4}
    deaths = {s: wall(text) for s, text in died.items()}
    return Hospital(events, stays, deaths, pq.read_table(true_risks_path(folder)).to_pylist())


def label(hospital: Hospital, patient: int, task: str, index: datetime) -> bool:
    window = timedelta(days=30)
    stays = hospital.stays[patient]
    if task == "mortality":
        return hospital.deaths.get(patient, datetime.max) - index <= window
    if task == "readmission":
        return any(timedelta(0) < stay.start - index <= window for stay in stays)
    stay = next(stay for stay in stays if stay.start <= index <= stay.end)
    if task == "length_of_stay":
        return stay.end - stay.start > timedelta(days=7)
    return GROUPS[task] in stay.codes


def quintiles(hospital: Hospital) -> dict[str, np.ndarray]:
    values = defaultdict(list)
    for events in hospital.events.values():
        for _, code, value in events:
            if value is not None:
                values[code].append(value)
    return {code: np.quantile(found, [0.2, 0.4, 0.6, 0.8]) for code, found in values.items()}


def tables(hospital: Hospital, edges: dict[str, np.ndarray], columns: dict[str, int]):
    """By task: token counts up to the index time (whole record, this stay), labels, true risks."""
    tokens = {
        patient: [
            (time, code if value is None else f"{code}//Q{np.searchsorted(edges[code], value)}")
            for time, code, value in events
        ]
        for patient, events in hospital.events.items()
    }
    if not columns:
        names = sorted({token for found in tokens.values() for _, token in found})
        columns.update({token: column for column, token in enumerate(names)})
    rows = defaultdict(list)
    for risk in hospital.risks:
        patient, index = risk["subject_id"], risk["prediction_time"]
        start = max(stay.start for stay in hospital.stays[patient] if stay.start <= index)
        counts = np.zeros((2, len(columns)), np.float32)
        for time, token in tokens[patient]:
            if time <= index:
                counts[0, columns[token]] += 1
                counts[1, columns[token]] += time >= start
        truth = label(hospital, patient, risk["task"], index)
        rows[risk["task"]].append((counts.ravel(), truth, risk["true_risk"]))
    return {
        task: [np.array(part) for part in zip(*found, strict=True)] for task, found in rows.items()
    }


@pytest.mark.slow
def test_boosting_on_token_counts_comes_close_to_the_true_risk(tmp_path):
    train = load(simulate(tmp_path / "train", patients=2000, seed=1))
    test = load(simulate(tmp_path / "test", patients=2000, seed=2))
    edges, columns = quintiles(train), {}
    seen, unseen = tables(train, edges, columns), tables(test, edges, columns)
    for task, (counts, labels, _) in seen.items():
        model = HistGradientBoostingClassifier(max_leaf_nodes=8).fit(counts, labels)
        counts, labels, risks = unseen[task]
        scores = model.predict_proba(counts)[:, 1]
        best, found = roc_auc_score(labels, risks), roc_auc_score(labels, scores)
        print(f"{task}: best possible AUROC {best:.3f}, boosting {found:.3f}")
        assert best - found < 0.05, task
        assert np.corrcoef(scores, risks)[0, 1] > 0.8, task
