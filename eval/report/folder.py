"""The folder of a report: what may stand there before, and how its files are written."""

from collections.abc import Collection, Mapping
from pathlib import Path

from caskd.store.errors import UsageError
from caskd.store.io import CLAIM, check_readable, files, read_json_object

FORMAT = "caskd-report"
SUMMARY, CASCADE = "summary.json", "cascade.json"


def check_not_a_file(out: Path) -> None:
    """Stop if `out` exists and is no folder.

    Raises:
        UsageError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file, expected a folder; choose another --out")


def check_folder(out: Path) -> None:
    """Stop unless `out` is new, empty or an earlier report.

    Raises:
        UsageError: `out` holds something else.
    """
    if not out.exists():
        return
    check_not_a_file(out)
    if {path.name for path in out.iterdir()} <= {CLAIM}:
        return
    try:
        known = read_json_object(out / SUMMARY, constants=True)["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        check_readable(error, f"--out {out / SUMMARY}")
        known = False
    if not known:
        raise UsageError(
            f"--out {out}: is not empty and not a report; expected a new or empty folder or an "
            "earlier report; choose another --out"
        )


def write_files(out: Path, contents: Mapping[str, bytes], report_files: Collection[str]) -> None:
    """Write each file atomically, and remove files of an earlier report.

    Args:
        out: the folder.
        contents: of the files, by name.
        report_files: every name that a report of any kind may have; no other file is removed.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        files.replace_file(out / name, content)
    for name in sorted(set(report_files) - contents.keys()):
        (out / name).unlink(missing_ok=True)
