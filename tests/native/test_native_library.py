"""Finding a compiler, building once, and saying why not."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ehrmamba_hf import native
from ehrmamba_hf.native import library


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A process that has not looked for the library yet, with an empty cache."""
    monkeypatch.delenv("EHRMAMBA_NATIVE", raising=False)
    monkeypatch.setenv("EHRMAMBA_NATIVE_CACHE", str(tmp_path / "cache"))
    library._load_once.cache_clear()
    yield
    library._load_once.cache_clear()


@pytest.fixture
def compiler() -> list[str]:
    try:
        return library.find_compiler()
    except native.NativeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)


def test_it_is_built_into_the_cache_and_found_there_without_a_compiler(
    compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request
) -> None:
    assert native.available() and native.why_not() is None
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name == library.file_name(library.capability())
    assert library.capability().lower() in file.name
    library._load_once.cache_clear()
    request.getfixturevalue("no_compiler")
    assert native.available()


def test_a_change_of_source_flags_or_system_changes_the_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {library.file_name(level) for level in library.INSTRUCTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(library, "FLAGS", (*library.FLAGS, "-g"))
        names.add(library.file_name("baseline"))
    with monkeypatch.context() as patch:
        patch.setattr(library.platform, "libc_ver", lambda: ("glibc", "2.17"))
        names.add(library.file_name("baseline"))
    (tmp_path / "other.cpp").write_text("// another")
    monkeypatch.setattr(library, "SOURCE", tmp_path / "other.cpp")
    names.add(library.file_name("baseline"))
    assert len(names) == 6


def test_without_a_compiler_it_says_so_once(no_compiler) -> None:
    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler found.*ehrmamba-hf\[native\]"):
        assert not native.available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.available()
    with pytest.raises(native.NativeUnavailableError, match="no C"):
        library.load()


@pytest.mark.parametrize(
    ("variable", "there", "expected"),
    [
        ("ccache my++ -m64", {"ccache", "g++"}, ["ccache", "my++", "-m64"]),
        ("missing++", {"g++", "clang++"}, ["g++"]),
        ("", {"c++", "g++"}, ["c++"]),
        ("", {"clang++", "ziglang"}, ["clang++"]),
        ("", {"ziglang"}, [sys.executable, "-m", "ziglang", "c++"]),
    ],
)
def test_compilers_are_looked_for_in_order(
    variable: str, there: set[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> str | None:
        return name if name in there else None

    monkeypatch.setenv("CXX", variable)
    monkeypatch.setattr(library.shutil, "which", found)
    monkeypatch.setattr(library.importlib.util, "find_spec", found)
    assert library.find_compiler() == expected


def test_zig_is_told_the_instruction_set_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    def compile_source(command: list[str]) -> None:
        commands.append(command)
        Path(command[-1]).touch()

    monkeypatch.setattr(library, "find_compiler", lambda: ["python", "-m", "ziglang", "c++"])
    monkeypatch.setattr(library, "compile_source", compile_source)
    for level in library.INSTRUCTIONS:
        assert library.build(level, tmp_path).is_file()
    assert [[part for part in command if part.startswith("-m")][1:] for command in commands] == [
        ["-mcpu=x86_64_v4"],
        ["-mcpu=x86_64_v3"],
        ["-mcpu=baseline"],
    ]


def test_a_failed_build_is_one_warning_with_the_compilers_last_lines(
    compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.cpp").write_text("int broken() { return nothing_of_this_name; }\n")
    monkeypatch.setattr(library, "SOURCE", tmp_path / "broken.cpp")
    with pytest.warns(RuntimeWarning, match=r"(?s)plain torch.*failed:.*nothing_of_this_name") as w:
        assert not native.available()
        assert not native.available()
    assert len(w) == 1 and compiler[0] in str(w[0].message)
    assert not list((tmp_path / "cache").iterdir()), "no half files are left"


def test_a_compiler_that_cannot_be_run_is_a_failed_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "find_compiler", lambda: [str(tmp_path / "gone++")])
    with pytest.warns(RuntimeWarning, match="gone.. could not be run"):
        assert not native.available()


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EHRMAMBA_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.why_not() == "turned off by EHRMAMBA_NATIVE=0"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("broken", ["a file in its place", "an unloadable library"])
def test_a_cache_that_cannot_be_used_is_done_without(broken: str, compiler, tmp_path: Path) -> None:
    if broken == "a file in its place":
        (tmp_path / "cache").touch()
    else:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / library.file_name(library.capability())).write_text("not a library")
    assert native.available()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"EHRMAMBA_NATIVE_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/ehrmamba_hf/native"),
        ({"HOME": "/c"}, "/c/.cache/ehrmamba_hf/native"),
    ],
)
def test_where_the_cache_is(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EHRMAMBA_NATIVE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert library.cache_folder() == Path(expected)


def test_processes_may_build_at_once(compiler, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ehrmamba_hf.native import library\n"
        "library.ctypes.CDLL(str(library.build('baseline', Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "shared")]
    running = [subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in "123"]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(list((tmp_path / "shared").iterdir())) == 1
