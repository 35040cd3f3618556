"""The package's public names exist, and importing the package alone loads none of its rooms."""

import subprocess
import sys

import pytest

import ehrmamba_hf


@pytest.mark.parametrize("name", ehrmamba_hf.__all__)
def test_it_is_there(name):
    assert callable(getattr(ehrmamba_hf, name))
    assert name in dir(ehrmamba_hf)


def test_another_is_not():
    with pytest.raises(AttributeError, match="has no attribute 'bert'"):
        _ = ehrmamba_hf.bert


def test_help_needs_no_heavy_library():
    heavy = "[m for m in ('torch', 'duckdb') if m in sys.modules]"
    command = [sys.executable, "-c", f"import sys, ehrmamba_hf.cli; print({heavy})"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
