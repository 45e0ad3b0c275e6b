"""The figures of `caskd demo` that the README quotes.

    python benchmarks/bench_demo.py            # writes benchmarks/results/demo.csv

Runs the demo twice with the same seed, as a user would, and checks that the figures are equal.
Writes one line per model.
"""

import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "demo.csv"
SEED = 0


def run_demo(out: Path) -> tuple[dict[str, Any], float]:
    """Run the demo; return its summary.json and its seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "caskd.cli", "demo", "--out", str(out), "--seed", str(SEED)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    summary: dict[str, Any] = json.loads((out / "report" / "summary.json").read_text())
    return summary, seconds


def main() -> None:
    """Run the demo twice, compare, and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        first, seconds = run_demo(Path(folder) / "one")
        second, again = run_demo(Path(folder) / "two")
    lines, repeated = table(first), table(second)
    assert lines == repeated, "the same seed gave other figures"
    surroundings = {
        "seconds": f"{seconds:.0f}", "seconds_again": f"{again:.0f}", "seed": SEED,
        "cores": os.cpu_count(), "machine": platform.machine(),
        "torch": version("torch"), "caskd": version("caskd"),
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0], *surroundings])
        writer.writeheader()
        writer.writerows({**line, **surroundings} for line in lines)
    print(RESULTS.read_text(), end="")


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One line per small model."""
    return [
        {
            "small": small["name"],
            "num_examples": small["all"]["num_examples"],
            **{
                name: f"{small['all'][name]:.4f}"
                for name in ("quality_small", "quality_large", "audc", "random_audc", "oracle_audc")
            },
        }
        for small in summary["smalls"]
    ]


if __name__ == "__main__":
    main()
