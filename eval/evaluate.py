"""`caskd eval`: a report on cascades, or on next-token predictions against a store's teacher."""

from pathlib import Path
from typing import Any

from caskd.eval.config import EvalConfig


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Write the report that the flags ask for, and print its summary.

    Returns:
        The content of `summary.json`.

    Raises:
        UsageError: a file is missing or not a predictions file, a flag is wrong, or `out` holds
            something else.
        IdentityError: predictions, a student or a store that do not belong together.
    """
    from caskd.eval.next_token import NEXT_TOKEN_FILES, next_token_report
    from caskd.eval.report import CASCADE, CASCADE_FILES, cascade_report, write_files

    out = Path(config.out)
    build = cascade_report if config.next_token is None else next_token_report
    report = build(config)
    write_files(out, report.files, CASCADE_FILES | NEXT_TOKEN_FILES)
    report.show()
    print(f"report: {out / 'index.html'}")
    if CASCADE in report.files:
        print(f"cascade: {out / CASCADE}")
    return report.summary
