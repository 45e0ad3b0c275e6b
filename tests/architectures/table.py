"""The table of docs/models.md: what each door of caskd does with each class of transformers.

`python tests/architectures/table.py [MODEL_TYPE ...]` tries every class, or those named, and writes
the table. A class that caskd computes wrongly gets no row, and exit code 1.
"""

import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # when this file is run

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

from architectures.trial import (  # noqa: E402
    DOORS,
    EXACT,
    NOT_BUILT,
    REFUSED,
    Outcome,
    outcomes,
    shared_store,
)

PAGE = ROOT / "docs" / "models.md"
_START, _END = "<!-- made by tests/architectures/table.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """Of the class."""
    model_type: str
    doors: tuple[str, ...]
    """What each of `DOORS` did: `exact`, `refused`, or nothing where an earlier one refused."""
    reason: str
    """Of the first refusal; empty if there was none."""

    def line(self) -> str:
        """The row in Markdown."""
        cells = [f"`{self.name}`", f"`{self.model_type}`", *self.doors, self.reason]
        return "| " + " | ".join(cells) + " |"


def row_of(model_type: str, found: Sequence[Outcome]) -> Row:
    """The row of a class from what its doors did."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    reasons = [outcome.reason for outcome in found if outcome.reason]
    reason = _short(reasons[0]) if reasons else ""
    return Row(names[model_type], model_type, tuple(o.what for o in found), reason)


def _short(reason: str) -> str:
    """The first sentence of a reason, without the modules of classes."""
    line = " ".join(re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", reason).split())
    return re.split(r"\. |, so that", line)[0].replace("|", "/")[:160]


def committed() -> dict[str, Row]:
    """Model type -> row of the committed table."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            name, model_type, *doors, reason = (cell.strip(" `") for cell in line.split("|")[1:-1])
            rows[model_type] = Row(name, model_type, tuple(doors), reason)
    return rows


def page(rows: Iterable[Row]) -> str:
    """docs/models.md with these rows in its table."""
    rows = sorted(rows, key=lambda row: (row.name.lower(), row.model_type))
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(_START)[0], text.split(_END)[1]
    head = ["class", "model type", *DOORS, "reason"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(r.line() for r in rows)]
    return f"{before}{_START}\n{summary(rows)}\n\n" + "\n".join(lines) + f"\n{_END}{after}"


def summary(rows: Sequence[Row]) -> str:
    """Counts of the outcomes, in one sentence."""
    parts = []
    for index, door in enumerate(DOORS):
        counts = Counter(row.doors[index] for row in rows)
        parts.append(f"{door} {counts[EXACT]}")
    refused = sum(REFUSED in row.doors for row in rows)
    unbuilt = sum(NOT_BUILT in row.doors for row in rows)
    return (
        f"{len(rows)} model types. Exact: {', '.join(parts)}. A door refuses {refused} of them; "
        f"{unbuilt} cannot be built or opened by transformers itself."
    )


def main(model_types: Sequence[str]) -> int:
    """Try classes of the installed transformers, all by default, and write their rows."""
    warnings.simplefilter("ignore")
    work = Path(tempfile.mkdtemp())
    rows, wrong = committed() if model_types else {}, []
    try:
        store = shared_store(work / "shared")
        for model_type in model_types or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            folder = work / model_type
            try:
                rows[model_type] = row_of(model_type, outcomes(model_type, store, folder))
                PAGE.write_text(page(rows.values()), encoding="utf-8")
                print(rows[model_type].line(), flush=True)
            except Exception as error:  # one class must not hide those after it
                wrong.append(f"{model_type}: {type(error).__name__}: {error}")
                print(f"WRONG {wrong[-1]}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(work)
    print("\n".join([f"{PAGE}: {summary(list(rows.values()))}", *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
