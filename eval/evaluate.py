"""`caskd eval`: a report on cascades, or on next-token predictions against a store's teacher."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from caskd.eval.config import EvalConfig
from caskd.store.io import claimed, tell

if TYPE_CHECKING:
    from caskd.eval.report import Report


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Write the report that the flags ask for, and print its summary.

    Returns:
        The content of `summary.json`.

    Raises:
        UsageError: a file is missing or not a predictions file, a flag is wrong, or `out` holds
            something else or is in use by another process.
        IdentityError: predictions, a student or a store that do not belong together.
    """
    from caskd.eval.report import CASCADE, check_not_a_file

    out = Path(config.out)
    check_not_a_file(out)
    with claimed(out, "--out"):
        report = _write(config, out)
    report.show()
    tell(f"report: {out / 'index.html'}")
    if CASCADE in report.files:
        tell(f"cascade: {out / CASCADE}")
    return report.summary


def _write(config: EvalConfig, out: Path) -> "Report":
    """Build the report and write it to the folder, which this process holds."""
    from caskd.eval.next_token import NEXT_TOKEN_FILES, next_token_report
    from caskd.eval.report import CASCADE_FILES, cascade_report, write_files

    build = cascade_report if config.next_token is None else next_token_report
    report = build(config)
    write_files(out, report.files, CASCADE_FILES | NEXT_TOKEN_FILES)
    return report
