"""A Spark session for one run, and Spark's errors as the package's own."""

import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ehrmamba_hf import errors
from ehrmamba_hf.errors import EHRMambaError, InputError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_MASTERS: Final = re.compile(r"(local|local-cluster)\[.+\]|local|yarn|spark://.+|k8s://.+")
_RAISED: Final = re.compile(r"ehrmamba_hf\.errors\.(\w+): (.+)")
_MISSING: Final = re.compile(r"No module named '([\w.]+)'")
_TRACE: Final = re.compile(r"Traceback [^\n]*\n(?:[ \t][^\n]*\n|\n)*(\S[^\n]*)")
_PATIENCE: Final = 10.0  # seconds; Spark's own is more than a minute, and ends in a riddle
_SETTINGS: Final = {
    # Cells are blocks of rows, megabytes each: a batch holds few of them.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "64",
    # Hadoop would put a hidden file of check sums beside each file on a local disk.
    "fs.file.impl": "org.apache.hadoop.fs.RawLocalFileSystem",
    "fs.file.impl.disable.cache": "true",
}


@contextmanager
def spark_session(master: str, *, progress: bool) -> Iterator["SparkSession"]:
    """A session on a cluster; what fails on it is raised as the package's errors.

    Uses the Spark that runs in this process if there is one (as under spark-submit, and in a
    notebook), and starts and ends one of its own otherwise. Workers use this process's Python
    interpreter by path unless PYSPARK_PYTHON names another.

    Args:
        master: a master's URL: local[N], local-cluster[W,C,M], spark://HOST:PORT, yarn, k8s://...
        progress: Spark's bars on the terminal, one a stage.

    Raises:
        InputError: no pyspark, no Java, no such master, or workers without the package.
        EHRMambaError: the work failed on the cluster.
    """
    _expect_spark()
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    _expect_master(master)
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        os.environ.setdefault(name, sys.executable)
    running = SparkContext._active_spark_context is not None
    builder = SparkSession.builder.master(master).appName("ehrmamba")
    builder = builder.config("spark.ui.showConsoleProgress", str(progress).lower())
    with _told(master):
        # A session of its own: its settings are nobody else's.
        session = builder.getOrCreate().newSession()
        try:
            for name, value in _SETTINGS.items():
                session.conf.set(name, value)
            yield session
        finally:
            if not running:
                session.stop()


def _expect_spark() -> None:
    try:
        import pyspark  # noqa: F401
    except ImportError:
        raise InputError(
            "engine spark: expected pyspark, found none: pip install 'ehrmamba-hf[spark]'"
        ) from None
    home = os.environ.get("JAVA_HOME")
    if not (home and (Path(home) / "bin" / "java").exists()) and not shutil.which("java"):
        raise InputError(
            "engine spark: expected Java 17 or later (on the PATH, or JAVA_HOME), found none"
        )


def _expect_master(master: str) -> None:
    if not _MASTERS.fullmatch(master):
        raise InputError(
            "master: expected local[N], local-cluster[W,C,M], spark://HOST:PORT, yarn or "
            f"k8s://..., found {master!r}"
        )
    if not master.startswith("spark://"):
        return
    places = master.removeprefix("spark://").split(",")
    if not any(map(_answers, places)):
        raise InputError(f"master: expected a Spark master that answers, found none at {master}")


def _answers(place: str) -> bool:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _told(master: str) -> Iterator[None]:
    """An error of Spark, or one raised in a worker, as one of the package's."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (Py4JError, PySparkException) as error:
        text = str(error)
        if raised := _RAISED.search(text):
            kind = getattr(errors, raised[1], EHRMambaError)
            raise kind(raised[2]) from error
        if missing := _MISSING.search(text):
            raise InputError(
                f"master {master}: expected workers that can import {missing[1]}, found one that "
                f"cannot: install ehrmamba-hf[spark] on every worker, for the Python that "
                f"PYSPARK_PYTHON names ({os.environ.get('PYSPARK_PYTHON')})"
            ) from error
        raise EHRMambaError(f"master {master}: {_reason(text)}") from error


def _reason(text: str) -> str:
    """What a long error says: the end of a worker's trace, or Java's first and last word.

    >>> _reason("Job failed\\nTraceback (most recent call last):\\n  File x\\nOSError: no room\\n")
    'OSError: no room'
    """
    if raised := _TRACE.search(text):
        return raised[1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:")]
    return " / ".join([*lines[:2], *causes[-1:]])
