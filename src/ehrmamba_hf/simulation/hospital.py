"""Synthetic courses -> FHIR R4 NDJSON, one file a resource type, and the true risks beside them.

Resources follow https://hl7.org/fhir/R4/. Times are wall clock, written with an offset of -05:00.
No resource carries a name.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.fhir.identity import subject_id
from ehrmamba_hf.folders import staged, staged_file
from ehrmamba_hf.simulation.course import CATALOG, MONTH, Course, Event

RISK_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("task", pa.string()),
        ("prediction_time", pa.timestamp("us")),
        ("true_risk", pa.float64()),
        ("given", pa.string()),
    ]
)
HL7 = "http://terminology.hl7.org/CodeSystem"
REPORTED = 45  # minutes from a sample to its result
IN_RECORD = ("condition_0", "condition_2")  # a drug always shows the disease that they depend on
EPOCH = datetime(1970, 1, 1)
Resource = dict[str, Any]


def true_risks_path(out: Path) -> Path:
    """Where the true risks of a synthetic hospital lie: beside its folder, never inside.

    >>> true_risks_path(Path("data/fhir")).name
    'fhir.true_risks.parquet'
    """
    return out.with_name(f"{out.name}.true_risks.parquet")


def simulate(out: Path, *, patients: int, seed: int = 0, progress: bool = False) -> Path:
    """Write a synthetic hospital, whole or not at all.

    Patient i of a seed is the same whatever the number of patients. The true risks, at
    `true_risks_path(out)` with `RISK_SCHEMA`, have a row for each task and index time of the
    prospective protocol: mortality and readmission within 30 days at alive discharge, if the data
    goes on for 30 days; length of stay over 7 days and the coded conditions at 24 h of a stay that
    ends later. `given` says what a risk is conditional on: the "record" so far or the "latent"
    state (which the record shows almost).

    Args:
        out: the folder to make; an earlier hospital there is replaced.
        patients: how many, at least 1.
        seed: at least 0.
        progress: show a progress bar.

    Returns:
        `out`.

    Raises:
        InputError: if `out` holds something else, or a number is out of range.
    """
    out = Path(out)
    if patients < 1 or seed < 0:
        found = f"patients={patients}, seed={seed}"
        raise InputError(f"simulate: expected patients >= 1 and seed >= 0, found {found}")
    names = {f"{kind}.ndjson" for kind in KINDS}
    with staged(out, marker="Patient.ndjson", contents=names) as folder:
        risks = _write(folder, patients, seed, progress)
        with staged_file(true_risks_path(out)) as file:
            pq.write_table(risks, file)
    return out


def _write(folder: Path, patients: int, seed: int, progress: bool) -> pa.Table:
    """Write the resources of all patients; return their true risks."""
    encoder, risks, latest = msgspec.json.Encoder(), [], 0
    with ExitStack() as stack:
        files = {n: stack.enter_context((folder / f"{n}.ndjson").open("wb")) for n in KINDS}
        files["Medication"].write(encoder.encode_lines(list(MEDICATIONS.values())))
        for i in tqdm(range(patients), "simulate", unit=" patients", disable=not progress):
            rng = np.random.default_rng((seed, i))
            patient, course = str(UUID(bytes=rng.bytes(16), version=4)), Course(rng)
            resources = defaultdict(list)
            for resource in _resources(patient, course):
                resources[resource["resourceType"]].append(resource)
            for name, lines in resources.items():
                files[name].write(encoder.encode_lines(lines))
            risks += [(subject_id(patient), *risk) for risk in course.risks]
            latest = max(latest, course.died or 0, course.visits[-1].end)
    followed = ("mortality", "readmission")
    kept = [risk for risk in risks if risk[1] not in followed or risk[2] + MONTH <= latest]
    subjects, tasks, times, true = zip(*kept, strict=True) if kept else ((), (), (), ())
    wall = np.array(times, "datetime64[m]").astype("datetime64[us]")
    given = ["record" if task in IN_RECORD else "latent" for task in tasks]
    return pa.table([subjects, tasks, wall, true, given], schema=RISK_SCHEMA)


@lru_cache(4096)
def _time(minute: int) -> str:
    return f"{EPOCH + timedelta(minutes=minute):%Y-%m-%dT%H:%M:%S}-05:00"


def _coded(system: str, code: str, **display: str) -> Resource:
    return {"coding": [{"system": system, "code": code, **display}]}


LABORATORY = [_coded(f"{HL7}/observation-category", "laboratory")]
VITAL_SIGNS = [_coded(f"{HL7}/observation-category", "vital-signs")]
DIAGNOSIS = [_coded(f"{HL7}/condition-category", "encounter-diagnosis")]
# kind of event -> resource type, the name of its time, and what is the same in all
RESOURCE: dict[str, tuple[str, str, Resource]] = {
    "lab": ("Observation", "effectiveDateTime", {"status": "final", "category": LABORATORY}),
    "vital": ("Observation", "effectiveDateTime", {"status": "final", "category": VITAL_SIGNS}),
    "procedure": ("Procedure", "performedDateTime", {"status": "completed"}),
    "drug": ("MedicationRequest", "authoredOn", {"status": "completed", "intent": "order"}),
    "dose": ("MedicationAdministration", "effectiveDateTime", {"status": "completed"}),
    "diagnosis": ("Condition", "recordedDate", {"category": DIAGNOSIS}),
}
# encoded once; every other drug is named by a Medication resource, as all are in some hospitals
CONCEPTS = [
    msgspec.Raw(msgspec.json.encode(_coded(line["system"], line["code"], display=line["name"])))
    for line in CATALOG
]
MEDICATIONS = {
    row: {"resourceType": "Medication", "id": f"drug-{line['code']}", "code": CONCEPTS[row]}
    for row, line in enumerate(CATALOG)
    if line["kind"] == "drug" and row % 2
}
KINDS = ("Patient", "Encounter", "Medication", *{kind: 0 for kind, _, _ in RESOURCE.values()})


def _resources(patient: str, course: Course) -> Iterator[Resource]:
    """All resources of one patient; their ids share the first half of the patient's."""
    ids = (f"{patient[:24]}{number:012x}" for number in count())
    born = f"{EPOCH + timedelta(minutes=course.born):%Y-%m-%d}"
    gender = "female" if course.female else "male"
    person = {"resourceType": "Patient", "id": patient, "gender": gender, "birthDate": born}
    yield person if course.died is None else person | {"deceasedDateTime": _time(course.died)}
    subject = {"reference": f"Patient/{patient}"}
    for visit in course.visits:
        identity = next(ids)
        encounter: Resource = {
            "resourceType": "Encounter",
            "id": identity,
            "status": "finished",
            "class": {"system": f"{HL7}/v3-ActCode", "code": "IMP" if visit.inpatient else "AMB"},
            "subject": subject,
            "period": {"start": _time(visit.start), "end": _time(visit.end)},
        }
        if visit.inpatient:
            code = "exp" if visit.end == course.died else "home"
            disposition = _coded(f"{HL7}/discharge-disposition", code)
            encounter["hospitalization"] = {"dischargeDisposition": disposition}
        yield encounter
        within = {"reference": f"Encounter/{identity}"}
        for event in visit.events:
            yield _resource(event, next(ids), subject, within)


def _resource(event: Event, identity: str, subject: Resource, within: Resource) -> Resource:
    kind, when, fixed = RESOURCE[event.kind]
    line, concept = CATALOG[event.row], CONCEPTS[event.row]
    place = "context" if event.kind == "dose" else "encounter"
    resource = {"resourceType": kind, "id": identity, **fixed, "subject": subject, place: within}
    resource[when] = _time(event.time)
    if event.row in MEDICATIONS:
        reference = f"Medication/{MEDICATIONS[event.row]['id']}"
        resource["medicationReference"] = {"reference": reference}
    else:
        resource["medicationCodeableConcept" if line["kind"] == "drug" else "code"] = concept
    if line["unit"]:
        unit = {"unit": line["unit"], "system": "http://unitsofmeasure.org", "code": line["unit"]}
        resource["issued"] = _time(event.time + REPORTED)
        resource["valueQuantity"] = {"value": event.value, **unit}
    return resource
