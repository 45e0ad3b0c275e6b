"""Draw results/store_choice_means.csv: KL and calibration of each store against its bytes per row.

    python benchmarks/draw_store_choice.py docs/store-choice.svg

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
COLOURS = {"top": "tab:blue", "mass": "tab:cyan", "draws": "tab:orange", "head": "tab:green"}


def shown(line: dict[str, Any], name: str) -> str:
    """A mean with its t-interval as a difference to `full`."""
    low, high = line[f"{name}_t_low"], line[f"{name}_t_high"]
    if line["arm"] == "full" or low == "nan":
        return f"{float(line[name]):.4f}"
    return f"{float(line[name]):.4f} ({float(low):+.4f} to {float(high):+.4f})"


def main() -> None:
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "caskd", "svg.fonttype": "none"})
    with (RESULTS / "store_choice_means.csv").open() as file:
        lines = list(csv.DictReader(file))
    print("| store | bytes per row | NLL | KL | ECE | AUDC |\n|---|---|---|---|---|---|")
    for line in lines:
        size = line["bytes_per_row_vocab"] or line["bytes_per_row"] or "-"
        cells = (shown(line, name) for name in ("nll", "kl", "ece", "audc"))
        print(f"| {line['arm']} | {size} | {' | '.join(cells)} |")
    stores = [line for line in lines if line["bytes_per_row"]]
    full = next(line for line in lines if line["arm"] == "full")
    figure, axes = plt.subplots(1, len(FIGURES), figsize=(12, 3.6), layout="constrained")
    for axis, (name, title) in zip(axes, FIGURES.items(), strict=True):
        axis.axhline(float(full[name]), color="grey", linestyle=":", label="whole distribution")
        for line in stores:
            x = float(line["bytes_per_row_vocab"] or line["bytes_per_row"])
            y, base = float(line[name]), float(full[name])
            ends = [base + float(line[f"{name}_boot_{end}"]) for end in ("low", "high")]
            colour = next(c for prefix, c in COLOURS.items() if line["arm"].startswith(prefix))
            axis.plot([x, x], ends, color=colour, linewidth=1)
            axis.plot(x, y, "o", color=colour)
            axis.annotate(line["arm"], (x, y), textcoords="offset points", xytext=(4, 4), size=7)
        axis.set_xlabel("bytes per row")
        axis.set_title(title, fontsize=10)
    figure.savefig(Path(sys.argv[1]), metadata={"Date": None})


if __name__ == "__main__":
    main()
