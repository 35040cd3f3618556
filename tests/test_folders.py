"""Folders that are whole or not there, and runs that go on where they ended."""

import json

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.folders import finish_part, finished_part, only_writer, resumable, staged


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_resumed_run_finds_what_the_last_one_left(tmp_path):
    out = tmp_path / "out"
    with (
        pytest.raises(OSError, match="full"),
        resumable(out, marker="done", contents=["done"]) as folder,
    ):
        (folder / "piece").write_text("1")
        raise OSError("disk full")
    assert names(tmp_path) == [".out.partial"]
    with resumable(out, marker="done", contents=["done"]) as folder:
        assert names(folder) == ["piece"]
        (folder / "piece").rename(folder / "done")
    assert names(tmp_path) == ["out"]
    assert names(out) == ["done"]


def test_what_another_run_would_meet_again_leaves_nothing(tmp_path):
    with pytest.raises(InputError), resumable(tmp_path / "out", marker="x", contents=[]) as folder:
        (folder / "piece").write_text("1")
        raise InputError("no patients")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", [staged, resumable])
def test_something_else_is_never_replaced(tmp_path, kind):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("mine")
    with pytest.raises(InputError, match="thesis"), kind(tmp_path / "out", marker="x", contents=[]):
        pass
    assert names(tmp_path / "out") == ["thesis"]


@pytest.mark.parametrize("kind", [staged, resumable])
def test_one_writer_at_a_time(tmp_path, kind):
    with (
        only_writer(tmp_path / "out"),
        pytest.raises(InputError, match="another run"),
        kind(tmp_path / "out", marker="x", contents=[]),
    ):
        pass


def test_a_part_counts_for_the_key_that_it_was_made_from(tmp_path):
    file = tmp_path / "part.json"
    assert finished_part(file, "a") is None
    finish_part(file, "a", {"rows": 3})
    assert finished_part(file, "a") == {"rows": 3}
    assert finished_part(file, "b") is None
    assert names(tmp_path) == ["part.json"]
    assert json.loads(file.read_text())["key"] == "a"
