"""The same patients through FHIR and through MEDS give the same sequences, labels and tokens."""

import gzip
import json
import shutil
from pathlib import Path

import meds
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from ehrmamba_hf.corpus import prepare
from ehrmamba_hf.corpus.prepare import PrepareSettings
from ehrmamba_hf.errors import SchemaError
from ehrmamba_hf.events import ingest, read_encounters, read_subjects, validate
from ehrmamba_hf.events.meds.source import ingest_meds
from ehrmamba_hf.events.schema import EVENT_SCHEMA
from ehrmamba_hf.simulation import simulate

SETTINGS = PrepareSettings(min_patients=2)
PLAIN = ["subject_id", "time", "code", "numeric_value", "text_value"]


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> Path:
    """The events folder of a synthetic hospital."""
    root = tmp_path_factory.mktemp("hospital")
    simulate(root / "fhir", patients=40, seed=5)
    ingest(root / "fhir", root / "events", workers=1, progress=False)
    return root / "events"


def through_meds(source: Path, out: Path) -> Path:
    out.mkdir()
    ingest_meds(source, out, workers=2, memory="1GB")
    validate(out)
    return out


def prepared(events: Path, out: Path) -> Path:
    return prepare(events, out, SETTINGS, progress=False)


def tables(folder: Path) -> dict[str, pa.Table]:
    return {
        "data": pq.read_table(folder / "data").cast(EVENT_SCHEMA),
        "encounters": read_encounters(folder),
        "subjects": read_subjects(folder),
        "codes": pq.read_table(folder / "metadata" / "codes.parquet"),
    }


def sequences(data: Path, name: str) -> dict[str, list]:
    return {split: rows.to_list() for split, rows in load_from_disk(str(data / name)).items()}


def expect_equal(one: Path, two: Path, *, inputs: bool = True) -> None:
    """Two data folders hold the same, down to the tokenizer; or but for the finetuning inputs."""
    assert sequences(one, "pretrain") == sequences(two, "pretrain")
    assert pq.read_table(one / "labels.parquet") == pq.read_table(two / "labels.parquet")
    for file in (one / "tokenizer").iterdir():
        assert file.read_text() == (two / "tokenizer" / file.name).read_text(), file.name
    if inputs:
        assert sequences(one, "finetune") == sequences(two, "finetune")


def expect_a_round_trip(events: Path, tmp_path: Path) -> None:
    again = through_meds(events, tmp_path / "again")
    assert tables(again) == tables(events)
    about = "metadata/dataset.json"
    assert (again / about).read_text() == (events / about).read_text()
    expect_equal(prepared(events, tmp_path / "one"), prepared(again, tmp_path / "two"))


def test_an_events_folder_is_a_meds_dataset(events, tmp_path):
    expect_a_round_trip(events, tmp_path)


def test_what_is_written_from_fhir_is_meds(events, tmp_path):
    """The `meds` package's own checks; the tests of MEDS sources do the same with theirs."""
    for file in (events / "data").iterdir():
        meds.DataSchema.validate(pq.read_table(file))
    codes = pq.read_table(events / meds.code_metadata_filepath)
    meds.CodeMetadataSchema.validate(codes)
    found = pc.unique(pq.read_table(events / "data")["code"])
    assert set(codes["code"].to_pylist()) >= set(found.to_pylist())
    meds.DatasetMetadataSchema.validate(
        json.loads((events / meds.dataset_metadata_filepath).read_text())
    )


@pytest.mark.shared_data
def test_mimic_through_meds(shared_data, tmp_path):
    source = shared_data / "mimic-iv-demo-fhir-6"
    ingest(source, tmp_path / "events", workers=1, progress=False)
    again = through_meds(tmp_path / "events", tmp_path / "again")
    assert tables(again) == tables(tmp_path / "events")
    settings = PrepareSettings(min_patients=1, categories=("procedure", "medication", "lab"))
    one = prepare(tmp_path / "events", tmp_path / "one", settings, progress=False)
    two = prepare(again, tmp_path / "two", settings, progress=False)
    expect_equal(one, two)


@pytest.mark.slow
@pytest.mark.shared_data
def test_synthea_through_meds(shared_data, tmp_path):
    folder = tmp_path / "fhir"
    folder.mkdir()
    people: set[str] = set()
    files = sorted((shared_data / "synthea-r4").glob("*.ndjson.gz"))
    for file in sorted(files, key=lambda file: file.name != "Patient.ndjson.gz"):
        with gzip.open(file, "rt") as lines, (folder / file.stem).open("w") as out:
            for number, line in enumerate(lines):
                record = json.loads(line)
                if file.name.startswith("Patient"):
                    if number < 100:
                        people.add(f"Patient/{record['id']}")
                        out.write(line)
                elif (record.get("subject") or record.get("patient"))["reference"] in people:
                    out.write(line)
    ingest(folder, tmp_path / "events", workers=1, progress=False)
    expect_a_round_trip(tmp_path / "events", tmp_path)


def without(source: Path, out: Path, *names: str, columns: list[str] | None = None) -> Path:
    """A copy of a dataset that lacks files, or all but some columns."""
    (out / "data").mkdir(parents=True)
    for file in source.rglob("*.parquet"):
        name = file.relative_to(source)
        if name.as_posix() not in names and name.parts[0] != "metadata":
            table = pq.read_table(file)
            kept = columns if columns and name.parts[0] == "data" else table.column_names
            pq.write_table(table.select(kept), out / name)
    return out


def test_without_its_encounters_visits_are_calendar_days(events, tmp_path):
    bare = without(events, tmp_path / "bare", "encounters.parquet", "subjects.parquet")
    (tmp_path / "out").mkdir()
    report = ingest_meds(bare, tmp_path / "out", workers=1)
    assert any("no encounters.parquet beside them" in warning for warning in report["warnings"])
    assert tables(tmp_path / "out")["data"] == tables(events)["data"]
    was, found = read_subjects(events), read_subjects(tmp_path / "out")
    for name in ("subject_id", "birth", "death"):
        assert found[name] == was[name]
    assert found["sex"].null_count == len(found)
    data = prepared(tmp_path / "out", tmp_path / "data")
    assert sum(map(len, sequences(data, "pretrain").values())) > 10
    assert len(pq.read_table(data / "labels.parquet")) == 0


def test_plain_meds_goes_all_the_way(events, tmp_path):
    names = ("encounters.parquet", "subjects.parquet")
    plain = without(events, tmp_path / "plain", *names, columns=PLAIN)
    data = prepared(through_meds(plain, tmp_path / "out"), tmp_path / "data")
    rows = [row for split in sequences(data, "pretrain").values() for row in split]
    assert len(rows) > 10
    assert max(max(row["visit_orders"]) for row in rows) > 5
    assert json.loads((data / "prepare.json").read_text())["records"]["implicit_visit"] > 1000


def in_the_manner_of_an_etl(events: Path, out: Path) -> Path:
    """The events with encounters, sex and categories told by codes and a `table` column alone."""
    table = pa.concat_tables([pq.read_table(file) for file in (events / "data").iterdir()])
    table = table.select([*PLAIN, "encounter_id", "unit", "end_time", "category"])
    names = {"lab": "measurement", "vital_sign": "measurement", "medication": "drug_exposure"}
    names |= {"administration": "icu/inputevents"}
    kinds = [names.get(kind, kind) for kind in table["category"].to_pylist()]
    rows = table.drop_columns("category").append_column("table", pa.array(kinds)).to_pylist()
    words = {"IMP": "HOSPITAL_ADMISSION//ELECTIVE", "AMB": "Visit/OP"}
    for e in read_encounters(events).to_pylist():
        about = {"subject_id": e["subject_id"], "encounter_id": e["encounter_id"], "table": "visit"}
        rows.append({"time": e["start"], "code": words[e["class"]], **about})
        if e["class"] == "AMB":
            rows[-1]["end_time"] = e["end"]
        else:
            code = f"HOSPITAL_DISCHARGE//{e['disposition'] or 'UNK'}"
            rows.append({"time": e["end"], "code": code, **about})
    for s in read_subjects(events).to_pylist():
        code = f"GENDER//{s['sex'][0].upper()}"
        rows.append({"subject_id": s["subject_id"], "code": code, "table": "person"})
    (out / "data").mkdir(parents=True)
    schema = pq.read_schema(next((events / "data").iterdir()))
    fields = [schema.field(n) for n in (*PLAIN, "encounter_id", "unit", "end_time")]
    rows = pa.Table.from_pylist(rows, schema=pa.schema([*fields, ("table", pa.string())]))
    pq.write_table(rows, out / "data" / "0.parquet")
    shutil.copytree(events / "metadata", out / "metadata")  # names of codes
    return out


def test_codes_alone_give_the_sequences_of_the_fhir_form(events, tmp_path):
    """Labels and whole records are those of the FHIR form. Inputs at an index time are not: MEDS
    has no moment at which a result was issued."""
    found = through_meds(in_the_manner_of_an_etl(events, tmp_path / "meds"), tmp_path / "out")
    was = read_encounters(events).drop_columns(["disposition"])
    assert read_encounters(found).drop_columns(["disposition"]) == was
    assert read_subjects(found).drop_columns("source_id") == read_subjects(events).drop_columns(
        "source_id"
    )
    expect_equal(
        prepared(events, tmp_path / "one"), prepared(found, tmp_path / "two"), inputs=False
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("category", "lunch", "column category: expected one of .* in 1 rows, the first is row 1"),
        ("available_time", None, "column available_time: expected null or not before time"),
    ],
)
def test_own_rows_that_break_a_rule(events, tmp_path, column, value, message):
    broken = without(events, tmp_path / "broken")
    file = next((broken / "data").iterdir())
    table = pq.read_table(file)
    index = table.column_names.index(column)
    first = pc.equal(pa.array(range(len(table))), 0)
    other = pa.scalar(value) if value else pa.scalar(0, pa.int64()).cast(pa.timestamp("us"))
    changed = pc.if_else(first, other, table[column])
    if value is None:
        changed = pc.if_else(pc.is_valid(table["time"]), other, table[column])
    pq.write_table(table.set_column(index, table.schema.field(column), changed), file)
    (tmp_path / "out").mkdir()
    with pytest.raises(SchemaError, match=message):
        ingest_meds(broken, tmp_path / "out")


def test_events_of_subjects_that_the_source_does_not_list(events, tmp_path):
    broken = without(events, tmp_path / "broken")
    subjects = pq.read_table(broken / "subjects.parquet")
    pq.write_table(subjects.slice(1), broken / "subjects.parquet")
    (tmp_path / "out").mkdir()
    with pytest.raises(SchemaError, match=r"expected subjects of subjects\.parquet, found others"):
        ingest_meds(broken, tmp_path / "out")
