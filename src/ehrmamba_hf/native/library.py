"""The native scan's library: compiled once for this kind of machine, kept, and loaded by ctypes.

One library per instruction set, named after it, the platform, and a hash of the source and the
compiler's flags: machines that share a home folder do not meet each other's, and a new version of
this package builds its own. `EHRMAMBA_NATIVE=0` turns the library off; `EHRMAMBA_NATIVE_CACHE`
names another folder to keep it in than `$XDG_CACHE_HOME/ehrmamba_hf/native`.
"""

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("selective_scan.cpp")
FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-exceptions"),
    *("-shared", "-fPIC", "-pthread"),
)
# By the name that torch has for what the CPU can do, which it has found out already.
INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
    "baseline": (),
}
# Zig builds for the machine at hand unless told otherwise, names levels rather than features, and
# would build a C++ standard library of its own for each.
ZIG_INSTRUCTIONS = {
    "AVX512": ("-nostdlib++", "-mcpu=x86_64_v4"),
    "AVX2": ("-nostdlib++", "-mcpu=x86_64_v3"),
    "baseline": ("-nostdlib++", "-mcpu=baseline"),
}
COMPILERS = ("c++", "g++", "clang++")
BUILD_TIMEOUT = 300  # seconds
MESSAGE_LINES = 5

_lock = threading.Lock()


class NativeUnavailableError(RuntimeError):
    """There is no native scan in this process; the message says why."""


def load() -> ctypes.CDLL:
    """The library for this CPU, built if it is not in the cache yet.

    The first call does the work (a second or two if it has to build) and warns if it fails; later
    ones give the same answer at once.

    Raises:
        NativeUnavailableError: it is turned off, or could not be built or loaded.
    """
    if os.environ.get("EHRMAMBA_NATIVE") == "0":
        raise NativeUnavailableError("turned off by EHRMAMBA_NATIVE=0")
    with _lock:
        found = _load_once()
    if isinstance(found, str):
        raise NativeUnavailableError(found)
    return found


def available() -> bool:
    """Whether the native scan can be used in this process; builds it if need be."""
    return why_not() is None


def why_not() -> str | None:
    """Why the native scan cannot be used, or None if it can; builds it if need be."""
    try:
        load()
    except NativeUnavailableError as error:
        return str(error)
    return None


@functools.cache
def _load_once() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    name = capability()
    try:
        try:
            return ctypes.CDLL(str(build(name, cache_folder())))
        except OSError as error:
            logger.info("native scan: its cache cannot be used (%s)", error)
            # Once it is loaded, the file itself is no longer needed.
            with tempfile.TemporaryDirectory(
                prefix="ehrmamba-native-", ignore_cleanup_errors=True
            ) as private:
                return ctypes.CDLL(str(build(name, Path(private))))
    except (OSError, NativeUnavailableError) as error:
        warnings.warn(
            f"the selective scan runs in plain torch, several times slower: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
        return str(error)


def capability() -> str:
    """A key of `INSTRUCTIONS`: the most that this CPU has (ATEN_CPU_CAPABILITY may lower it)."""
    found = torch.backends.cpu.get_cpu_capability()
    return found if found in INSTRUCTIONS else "baseline"


def cache_folder() -> Path:
    """Where libraries are kept; not made yet."""
    if folder := os.environ.get("EHRMAMBA_NATIVE_CACHE"):
        return Path(folder)
    caches = os.environ.get("XDG_CACHE_HOME") or Path("~", ".cache").expanduser()
    return Path(caches, "ehrmamba_hf", "native")


def file_name(name: str) -> str:
    """The library's file name for the instruction set `name`."""
    system = (sys.platform, platform.machine(), *platform.libc_ver())
    flags = (*FLAGS, *INSTRUCTIONS[name], *ZIG_INSTRUCTIONS[name])
    text = "\n".join((*system, *flags, SOURCE.read_text(encoding="utf-8")))
    return f"selective_scan-{name.lower()}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"


def build(name: str, folder: Path) -> Path:
    """The library for the instruction set `name` in `folder`, compiled unless it is there.

    It is compiled beside its place and then moved there, so that several processes may do so at
    once and none ever sees half a file.

    Raises:
        NativeUnavailableError: there is no compiler, or it failed.
        OSError: `folder` cannot be written.
    """
    target = folder / file_name(name)
    if target.exists():
        return target
    compiler = find_compiler()
    instructions = ZIG_INSTRUCTIONS if "ziglang" in compiler else INSTRUCTIONS
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        half = Path(beside, target.name)
        logger.info("compiling the native scan with %s", shlex.join(compiler))
        compile_source([*compiler, *FLAGS, *instructions[name], str(SOURCE), "-o", str(half)])
        half.replace(target)
    return target


def find_compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, c++, g++, clang++, or the package ziglang.

    Raises:
        NativeUnavailableError: there is none.
    """
    for command in (shlex.split(os.environ.get("CXX", "")), *([name] for name in COMPILERS)):
        if command and shutil.which(command[0]):
            return command
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise NativeUnavailableError(
        f"no C++ compiler found ($CXX, {', '.join(COMPILERS)}); "
        "`pip install 'ehrmamba-hf[native]'` brings one"
    )


def compile_source(command: list[str]) -> None:
    """Run a compiler.

    Raises:
        NativeUnavailableError: it failed; the message has its name and its last lines.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-MESSAGE_LINES:])
        raise NativeUnavailableError(f"{shlex.join(command)} failed:\n{last}")
