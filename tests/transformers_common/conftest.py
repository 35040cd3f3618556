"""Makes transformers' own common tests importable, as the package `transformers_tests`.

The source distribution of transformers has them in `tests/`; `make transformers-tests` unpacks the
one of the installed version. It leaves out the folders below `tests/`: the three modules that the
common tests import from there have stand-ins here.
"""

import importlib
import os
import sys
import unittest
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import transformers

PACKAGE = "transformers_tests"
SOURCE = Path(
    os.environ.get("TRANSFORMERS_SOURCE")
    or Path(__file__).parents[2] / ".cache" / f"transformers-{transformers.__version__}"
)

# Another value than the default for what all configurations have in common.
CONFIG_COMMON = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
    "tie_word_embeddings": True,
    "bos_token_id": 6,
    "pad_token_id": 7,
    "eos_token_id": 8,
}

STAND_INS: dict[str, dict[str, object]] = {
    "utils.test_configuration_utils": {"config_common_kwargs": CONFIG_COMMON},
    # What of these applies is in tests/modeling/test_generation_common_ehrmamba.py.
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
}


def _add_module(name: str, **contents: object) -> None:
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module


def _load(tests: Path) -> None:
    _add_module(PACKAGE, __path__=[str(tests)])
    for name, contents in STAND_INS.items():
        _add_module(f"{PACKAGE}.{name.partition('.')[0]}", __path__=[])
        _add_module(f"{PACKAGE}.{name}", **contents)
    # The real one runs the `__init__` of a checkout beside the tests, where there is none.
    with mock.patch("transformers.utils.direct_transformers_import", lambda _: transformers):
        importlib.import_module(f"{PACKAGE}.test_configuration_common")


# Their slow tests are behind this variable too; here pytest's marker alone decides.
os.environ.setdefault("RUN_SLOW", "1")
if (SOURCE / "tests").is_dir():
    _load(SOURCE / "tests")


@pytest.fixture(autouse=True)
def only_justified_skips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips what the class says does not apply, and lets no test skip itself for another reason.

    Only a missing device or library, which the common tests ask for by decorators, still can.
    """
    for reason, names in getattr(request.cls, "not_applicable", {}).items():
        if request.node.name.startswith(names):
            pytest.skip(reason)

    def refuse(case: unittest.TestCase, reason: str) -> None:
        case.fail(f"skips itself, which no line of not_applicable justifies: {reason}")

    monkeypatch.setattr(unittest.TestCase, "skipTest", refuse)
