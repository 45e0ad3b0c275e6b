"""The figures of `caskd demo` that the README quotes.

    python benchmarks/bench_demo.py                        # writes benchmarks/results/demo.csv
    python benchmarks/bench_demo.py --instructions 0 1     # seeds; demo_instructions.csv

Runs the demo twice with the same seed, as a user would, and checks that the figures are equal.
Writes one line per model. With `--instructions` it runs the demo once for each seed and each
instruction set that torch can be limited to, because another rounding is amplified by the training.
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
BY_INSTRUCTIONS = RESULTS.with_name("demo_instructions.csv")
INSTRUCTIONS = ("default", "avx2", "avx512")
SEED = 0


def run_demo(
    out: Path, seed: int = SEED, instructions: str | None = None
) -> tuple[dict[str, Any], float]:
    """Run the demo; return its summary.json and its seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "caskd.cli", "demo", "--out", str(out), "--seed", str(seed)]
    env = {**os.environ, **({"ATEN_CPU_CAPABILITY": instructions} if instructions else {})}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
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


def by_instructions(seeds: list[int]) -> None:
    """Run the demo for each seed and instruction set, and write one line per run and model."""
    lines = []
    for seed in seeds:
        for instructions in INSTRUCTIONS:
            with tempfile.TemporaryDirectory() as folder:
                summary, _ = run_demo(Path(folder) / "one", seed, instructions)
            lines += instruction_lines(summary, seed, instructions)
    write_instructions(lines)


def instruction_lines(
    summary: dict[str, Any], seed: int, instructions: str
) -> list[dict[str, Any]]:
    """One line per small model of one run, with the difference of the AUDCs."""
    (found,) = [
        value for value in summary["contrasts"]
        if value["measure"] == "audc" and value["task"] == "all"
    ]  # fmt: skip
    difference = {
        name: f"{found[key]:.4f}"
        for name, key in (("difference", "difference"), ("low", "low"), ("high", "high"))
    }
    surroundings = {"torch": version("torch"), "machine": platform.machine()}
    return [
        {"seed": seed, "instructions": instructions, **line, **difference, **surroundings}
        for line in table(summary)
    ]


def write_instructions(lines: list[dict[str, Any]]) -> None:
    """Write the table of all runs."""
    with BY_INSTRUCTIONS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    print(BY_INSTRUCTIONS.read_text(), end="")


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
    if sys.argv[1:2] == ["--instructions"]:
        by_instructions([int(word) for word in sys.argv[2:]])
    else:
        main()
