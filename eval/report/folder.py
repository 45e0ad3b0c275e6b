"""The folder of a report: what may stand there before, and how its files come to be."""

import json
from collections.abc import Mapping
from pathlib import Path

from caskd.store.errors import UsageError
from caskd.store.io import replace_file

FORMAT = "caskd-report"
SUMMARY, CASCADE = "summary.json", "cascade.json"
_FIGURES = ("deferral_curve", "a1_a2", "rules", "cost", "bleu", "chain", "next_token")
_TABLES = ("summary", "curve", "rules", "rule_curves", "differences", "seeds", "seconds", "samples",
           "bleu", "chain", "transfer", "next_token", "next_token_rules",
           "next_token_curve")  # fmt: skip


def check_folder(out: Path) -> None:
    """A report may replace a report, and nothing else.

    Raises:
        UsageError: `out` holds something else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file, expected a folder; choose another --out")
    if not any(out.iterdir()):
        return
    try:
        known = json.loads((out / SUMMARY).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UsageError(f"--out {out} is not empty and not a report; choose another --out")


def write_files(out: Path, files: Mapping[str, bytes]) -> None:
    """Put each file in place whole, and take away what an earlier report had besides."""
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(out / name, content)
    earlier = {f"{name}.{kind}" for name in _FIGURES for kind in ("png", "svg")}
    earlier |= {f"{name}.csv" for name in _TABLES} | {CASCADE}
    for name in sorted(earlier - files.keys()):
        (out / name).unlink(missing_ok=True)
