"""Folders that are whole or not there, and runs that go on where they ended."""

import json
import os
from pathlib import Path

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.folders import (
    files_within,
    finish_part,
    finished_part,
    only_writer,
    resumable,
    staged,
)


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
    assert names(tmp_path) == ["part.json"]
    assert json.loads(file.read_text())["key"] == "a"
    assert finished_part(file, "b") is None


def test_a_part_counts_with_its_whole_data_alone(tmp_path):
    file, data = tmp_path / "parts" / "part.json", tmp_path / "data" / "rows"
    for path in (file, data):
        path.parent.mkdir()
    for spoil in (data.unlink, lambda: data.write_text("12")):
        data.write_text("1 2 3")
        finish_part(file, "a", 3, [data])
        assert finished_part(file, "a") == 3
        spoil()
        assert finished_part(file, "a") is None


def test_a_part_of_another_run_is_forgotten_before_its_data_are_replaced(tmp_path):
    file = tmp_path / "part.json"
    finish_part(file, "a", 1)
    assert finished_part(file, "b") is None  # and that run is killed before it has finished
    assert finished_part(file, "a") is None


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_part_that_a_lost_disk_left_is_none(tmp_path, text):
    (tmp_path / "part.json").write_text(text)
    assert finished_part(tmp_path / "part.json", "a") is None


def test_a_link_stays_one(tmp_path):
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    for _ in range(2):
        with resumable(tmp_path / "out", marker="done", contents=["done"]) as folder:
            (folder / "done").write_text("")
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "out") == ["done"]
    assert names(tmp_path / "disk") == ["out"]


@pytest.mark.parametrize("out", ["s3a://bucket/events", ".", "/"])
def test_places_that_no_folder_can_take(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected a"), staged(Path(out), marker="x", contents=[]):
        pass
    assert names(tmp_path) == []


def test_the_files_of_a_folder_and_of_its_links(tmp_path):
    source = tmp_path / "source"
    for place in (source / "a", source / ".hidden", tmp_path / "elsewhere"):
        place.mkdir(parents=True)
        (place / "file").write_text("")
    (source / "b").symlink_to(tmp_path / "elsewhere")
    (source / "b" / "round").symlink_to(source)
    (source / "nothing").symlink_to(tmp_path / "gone")
    found = sorted(path.relative_to(source).as_posix() for path in files_within(source))
    assert found == ["a/file", "b/file", "nothing"]
    assert [*files_within(source, skip=source)] == []


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(InputError, match="closed: expected a readable folder, found: Permission"):
        [*files_within(tmp_path)]
