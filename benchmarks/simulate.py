"""How fast the synthetic hospital is written, on one core.

Usage: python benchmarks/simulate.py [PATIENTS] [RUNS]
"""

import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from ehrmamba_hf.simulation import simulate

NOT_EVENTS = ("Patient", "Encounter", "Medication")


def cpu() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def events_in(folder: Path) -> int:
    """The resources that are events: one line each."""
    files = [file for file in folder.iterdir() if file.stem not in NOT_EVENTS]
    return sum(file.read_bytes().count(b"\n") for file in files)


def main(patients: int = 1000, runs: int = 5) -> None:
    """Print the median over the runs, each of the same hospital."""
    seconds = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            out = simulate(Path(folder) / "fhir", patients=patients, seed=1)
            seconds.append(time.perf_counter() - began)
            events = events_in(out)
    median = statistics.median(seconds)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "msgspec", "pyarrow"))
    print(f"{cpu()}; Python {platform.python_version()}, {packages}")
    print(f"{patients} patients of {events / patients:.0f} events, median of {runs} runs")
    print(f"{patients / median:.0f} patients/s, {events / median:.0f} events/s")
    print(
        f"slowest {patients / max(seconds):.0f}, fastest {patients / min(seconds):.0f} patients/s"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
