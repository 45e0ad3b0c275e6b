"""Draw results/store_choice_means.csv: KL and calibration of each store against its bytes per row.

    python benchmarks/draw_store_choice.py docs/pictures/store-choice.svg

Prints the table of docs/choosing-a-store.md, too.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from store_rows import RESULTS

FIGURES = {"kl": "KL to the teacher, nats", "ece": "calibration error", "audc": "AUDC"}
STYLES = {
    "top8": ("tab:blue", "v"),
    "top16": ("tab:blue", "s"),
    "top64": ("tab:blue", "o"),
    "mass99": ("tab:cyan", "D"),
    "draws16": ("tab:orange", "v"),
    "draws50": ("tab:orange", "s"),
    "draws100": ("tab:orange", "o"),
    "head8+draws16": ("tab:green", "v"),
    "head16+draws32": ("tab:green", "s"),
}
"""Arm -> colour by kind of store, marker by size."""


def interval(line: dict[str, Any], name: str) -> str:
    """The t-interval over seeds of the difference to `full`."""
    if line["arm"] == "full":
        return "-"
    low, high = (float(line[f"{name}_t_{end}"]) for end in ("low", "high"))
    return f"{low:+.3f} to {high:+.3f}"


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: bytes per row, KL, and what each store adds to `full`."""
    head = "| store | bytes | KL to the teacher | KL added | NLL added | ECE added | AUDC added |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for line in lines:
        size = line["bytes_per_row_vocab"]
        size = f"{float(size):.0f}" if size else "-"
        added = " | ".join(interval(line, name) for name in ("kl", "nll", "ece", "audc"))
        rows.append(f"| {line['arm']} | {size} | {float(line['kl']):.3f} | {added} |")
    return "\n".join(rows)


def main() -> None:
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "caskd", "svg.fonttype": "none"})
    with (RESULTS / "store_choice_means.csv").open() as file:
        lines = list(csv.DictReader(file))
    print(table(lines))
    stores = [line for line in lines if line["bytes_per_row"]]
    full = next(line for line in lines if line["arm"] == "full")
    figure, axes = plt.subplots(1, len(FIGURES), figsize=(12, 3.4), layout="constrained")
    for axis, (name, title) in zip(axes, FIGURES.items(), strict=True):
        axis.axhline(float(full[name]), color="grey", linestyle=":", label="whole distribution")
        for line in stores:
            x = float(line["bytes_per_row_vocab"])
            y, base = float(line[name]), float(full[name])
            ends = [base + float(line[f"{name}_boot_{end}"]) for end in ("low", "high")]
            colour, marker = STYLES[line["arm"]]
            axis.plot([x, x], ends, color=colour, linewidth=1)
            axis.plot(x, y, marker, color=colour, label=line["arm"], linestyle="none")
        axis.set_xlabel("bytes per row")
        axis.set_title(title, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(Path(sys.argv[1]), metadata={"Date": None})


if __name__ == "__main__":
    main()
