"""Data flows one way: a stage imports only earlier ones."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ehrmamba_hf"
ORDER = (
    *(
        "errors",
        "folders",
        "processes",
        "pages",
        "fhir",
        "events",
        "timelines",
        "tasks",
        "tokenization",
        "corpus",
        "spark",
    ),
    *(
        "native",
        "modeling",
        "conversion",
        "training",
        "baselines",
        "evaluation",
        "forecasting",
        "simulation",
    ),
    *("config", "demo", "cli", "__main__"),
)
ONLY = {"simulation": {"errors", "folders", "fhir"}}
"""A hospital to test the package with must not be made by what is tested."""


def stage_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[str]:
    """The stages that a file imports, wherever in it; relative imports stay in their folder.

    >>> list(imported("def f():\\n    from ehrmamba_hf.fhir.times import Clock"))
    ['fhir']
    >>> list(imported("from ehrmamba_hf import tasks; import ehrmamba_hf.corpus.encode, json"))
    ['tasks', 'corpus']
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            assert not isinstance(node, ast.ImportFrom) or node.level == 1, ast.unparse(node)
            continue
        for name in names:
            root, _, rest = name.partition(".")
            if root == "ehrmamba_hf" and rest:
                yield rest.partition(".")[0]


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def test_every_room_has_its_place_in_the_order():
    assert {stage_of(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_stage_imports_only_earlier_ones(file: Path):
    stage = stage_of(file)
    allowed = ONLY.get(stage, set(ORDER[: ORDER.index(stage)])) | {stage}
    found = set(imported(file.read_text())) - {"__version__"}
    assert found <= allowed, f"{file.name}: {sorted(found - allowed)} come after {stage}"


def test_the_package_itself_imports_nothing_of_its_own():
    assert not list(imported((PACKAGE / "__init__.py").read_text()))
