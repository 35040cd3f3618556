"""The files that go to the Hub with a model work there alone.

transformers copies them into one folder, and finds what they import by regular expressions over
their text (transformers/dynamic_module_utils.py), docstrings and all.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ehrmamba_hf"
FILES = sorted(PACKAGE.glob("*/*_ehrmamba.py"))
INSTALLED = {"torch", "transformers", "huggingface_hub", "safetensors"} | sys.stdlib_module_names
# Only where their absence is caught; of the package itself, nothing but the native scan.
ACCELERATORS = {"mamba_ssm", "causal_conv1d", "ehrmamba_hf"}
SIBLING = re.compile(r"\w+_ehrmamba")

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def imports(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_they_are_in_two_folders_under_names_that_differ():
    assert {file.parent.name for file in FILES} == {"modeling", "tokenization"}
    assert len({file.name for file in FILES}) == len(FILES) >= 8


@each_file
def test_they_import_siblings_and_what_every_user_has(file: Path):
    tree = ast.parse(file.read_text())
    guarded = {id(n) for t in ast.walk(tree) if isinstance(t, ast.Try) for n in imports(t)}
    for node in imports(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and SIBLING.fullmatch(node.module)
            assert (file.parent / f"{node.module}.py").is_file()
            assert all(alias.name != "*" for alias in node.names)
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        roots = {str(n).partition(".")[0] for n in names or [getattr(node, "module", None)]}
        assert "ehrmamba_hf" not in roots or ast.unparse(node) == "from ehrmamba_hf import native"
        allowed = INSTALLED | (ACCELERATORS if id(node) in guarded else set())
        assert roots <= allowed, f"{file.name} line {node.lineno}: {ast.unparse(node)}"


@each_file
def test_no_text_looks_like_a_relative_import(file: Path):
    source = file.read_text()
    real = {
        f".{node.module}"
        for node in imports(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert set(re.findall(r"\bfrom\s+(\.\S*)", source)) == real
    assert not re.search(r"\bimport\s+\.", source)


@each_file
def test_what_they_import_from_each_other_makes_no_circle(file: Path):
    """transformers loads a file's imports before it."""
    waiting, seen = [file], []
    while waiting:
        for node in imports(ast.parse(waiting.pop().read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                sibling = file.parent / f"{node.module}.py"
                assert sibling != file, f"{file.name} imports itself by way of {seen}"
                if sibling not in seen:
                    seen.append(sibling)
                    waiting.append(sibling)
