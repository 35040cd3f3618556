"""The page and the files: complete, self-contained, without patients, written whole."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from ehrmamba_hf.evaluation import evaluate_predictions, metrics_table, report, write_report
from ehrmamba_hf.evaluation.results import Estimate

TASKS = {"mortality": "Death within 30 days", "readmission": "Readmission", "condition_0": "Rare"}
WORDS = {
    "facts": {"Patients": "400", "Versions <b>": "1 & 2"},
    "exclusions": {"mortality": {"in_hospital_death": 1234}, "readmission": {}},
    "forecast": ["LOINC/2345-7 Glucose <high>", "the visit ends"],
    "load_snippet": 'model = AutoModel.from_pretrained("mpf")',
}


@pytest.fixture(scope="module")
def made_table(make_predictions):
    sizes = {"mortality": 120, "readmission": 150, "condition_0": 5}
    return pa.concat_tables([make_predictions(task, n, seed=n) for task, n in sizes.items()])


@pytest.fixture(scope="module")
def evaluation(made_table):
    return evaluate_predictions(
        made_table,
        made_table,
        true_risks=made_table,
        baselines={"gradient boosting": made_table},
        tasks=TASKS,
        resamples=40,
    )


@pytest.fixture(scope="module")
def page(evaluation):
    return report.render_report(evaluation, **WORDS)


class Tags(HTMLParser):
    """Collects start tags and checks that elements close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_task_is_there_with_its_numbers(page, evaluation):
    for task in evaluation.tasks:
        assert task.title in page
        if task.metrics:
            assert f"{task.metrics.auroc.value:.3f}" in page
    assert evaluation.tasks[2].not_judgeable in page
    for words in ("in hospital death", "1,234", "gradient boosting", "the visit ends"):
        assert words in page


def test_words_passed_in_are_escaped(page):
    assert "LOINC/2345-7 Glucose &lt;high&gt;" in page
    assert "Versions &lt;b&gt;" in page
    assert "<b>" not in page


def test_well_formed_with_unique_ids_and_described_figures(page):
    tags = Tags(page)
    assert not tags.open
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    figures = [attributes for tag, attributes in tags.seen if tag == "svg"]
    assert len(figures) == 3  # the overview and two judgeable tasks
    for figure in figures:
        assert figure["role"] == "img"
        assert "AUROC" in figure["aria-label"]


def test_self_contained(page):
    for tag, attributes in Tags(page).seen:
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_no_subject_ids(page, evaluation, made_table, tmp_path):
    write_report(tmp_path, evaluation, **WORDS)
    text = page + (tmp_path / "metrics.json").read_text()
    assert not any(str(subject) in text for subject in set(made_table["subject_id"].to_pylist()))


def test_the_same_evaluation_gives_the_same_page(page, evaluation):
    assert report.render_report(evaluation, **WORDS) == page


def test_nothing_judgeable_still_gives_a_page_and_a_table(make_predictions):
    few = make_predictions("mortality", 4, seed=0)
    evaluation = evaluate_predictions(few, few, tasks=TASKS)
    page = report.render_report(evaluation, **(WORDS | {"exclusions": {}, "forecast": None}))
    assert not Tags(page).open
    assert page.count("Too few cases to judge") == 3
    assert "No index time was left out" in page
    assert "No forecast was made" in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    assert shown(metrics_table(evaluation)).count("Too few cases to judge") == 3


def test_a_task_without_an_interval_says_so():
    assert report.interval_text(Estimate(0.5, None, None)) == "no interval"
    assert report.interval_text(Estimate(0.5, 0.25, 0.75)) == "0.250\N{EN DASH}0.750"
    low = Estimate(-0.0124, -0.02, 0.0001)
    minus = "\N{MINUS SIGN}"
    assert report.signed_text(low) == (f"{minus}0.012", f"{minus}0.020 to +0.000")


def shown(table) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_terminal_table(evaluation):
    text = shown(metrics_table(evaluation))
    for task in evaluation.tasks:
        assert task.task in text
    assert f"{evaluation.tasks[0].metrics.auroc.value:.3f}" in text
    assert "too few" in text and "to judge" in text


def test_files_are_written_whole_or_not_at_all(tmp_path, evaluation, monkeypatch):
    folder = tmp_path / "made" / "here"
    path = write_report(folder, evaluation, **WORDS)
    assert path == folder / "report.html"
    assert sorted(file.name for file in folder.iterdir()) == ["metrics.json", "report.html"]
    before = path.read_text()

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(folder, evaluation, **(WORDS | {"forecast": None}))
    assert path.read_text() == before
    assert sorted(file.name for file in folder.iterdir()) == ["metrics.json", "report.html"]
