"""The report of an import: what was read, and what its rows lost."""

from collections.abc import Mapping
from typing import Any

from caskd.precompute.import_config import ImportConfig
from caskd.store.io import counted

_TEXTS = {
    "pad_rows": "rows that predict padding were dropped",
    "cut_rows": "rows lost cells: a missing rank, an id twice or outside of the vocabulary",
    "lost_rows": "rows have no usable cell and are stored without a teacher (num_kept 0)",
    "resorted_rows": "rows were not in order of value, then id, and were sorted",
    "tied_argmax_rows": "rows have two ids with the largest value: the lower one is the argmax",
    "overfull_rows": "rows had more than probability 1 and were rescaled to 1",
}
_FEW_LABELS = 0.5


def report_lines(config: ImportConfig, survey: Mapping[str, Any], *, has_tail: bool) -> list[str]:
    """Lines about a source that was read whole."""
    rows, inside = survey["num_rows"], survey["num_labels"]
    tail = "1 - the kept mass" if has_tail else "unknown"
    kept = f"up to {survey['top_k']:,} log-probabilities a row; tail mass {tail}"
    if survey["num_draws"]:
        kept = (
            f"{survey['num_draws']:,} draws a row, up to {survey['top_k']:,} ids; the teacher's "
            "argmax is unknown"
        )
    lines = [
        f"{config.source}: {counted(rows, 'row')} of {counted(survey['num_examples'], 'example')}, "
        f"imported from {config.format}",
        f"  kept        {kept}",
        f"  labels      {inside / rows:.1%} of the labels are among the kept ids; the others have "
        "no known probability",
    ]
    if survey["num_without_rows"]:
        why = ", of no conversation of --data or without a reply" if config.from_messages else ""
        without = counted(survey["num_without_rows"], "example")
        lines.append(f"  empty       {without} without a row{why}")
    lines += [
        f"  counted     {survey['counts'][name]:,} {text}"
        for name, text in _TEXTS.items()
        if survey["counts"][name]
    ]
    if inside < _FEW_LABELS * rows:
        lines.append(
            "  warning     few labels are among the kept ids: the rows may be shifted against the "
            "tokens, or --tokenizer is another one"
        )
    return lines
