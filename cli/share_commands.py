"""`caskd store push | pull | ls | card | export`: commands that share stores."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from caskd.cli.store_pages import check_new_page, store_page, write_page
from caskd.store.errors import UsageError
from caskd.store.exchange import ExportFormat, export_store
from caskd.store.format import ENVIRONMENT, README
from caskd.store.inspect import (
    PLAN_COUNTS,
    card,
    license_note,
    measure_quality,
    read_text_counts,
)
from caskd.store.io import bytes_text, counted, escape_control, tell
from caskd.store.read import TeacherStore
from caskd.store.share import CopyReport, list_stores, listing_lines, pull_store, push_store
from caskd.store.storage import RetryPolicy, clean_url, is_remote, open_storage, read_whole, retry


@dataclass(frozen=True)
class PushConfig:
    """Copy a sealed store to another storage; a rerun resumes and checks existing files."""

    store: tyro.conf.Positional[str]
    """Directory of the store."""
    url: tyro.conf.Positional[str]
    """Target: a directory, s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/USER/NAME."""


@dataclass(frozen=True)
class PullConfig:
    """Copy a sealed store to a directory; a rerun resumes and checks existing files."""

    url: tyro.conf.Positional[str]
    """Source: a directory, s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/USER/NAME."""
    directory: tyro.conf.Positional[str]
    """Directory of the copy."""


@dataclass(frozen=True)
class ListConfig:
    """List the store at a location, or the stores directly inside it."""

    url: tyro.conf.Positional[str]
    """A directory, s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/USER/NAME."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True)
class CardConfig:
    """Print a store's card, with the teacher's quality on the labels measured now."""

    store: tyro.conf.Positional[str]
    """Directory or URL of the store."""
    write: bool = False
    """Also write the card to the store's README.md, keeping its License section."""
    html: str | None = None
    """Write a page to this new HTML file instead of text; the page loads nothing."""


@dataclass(frozen=True)
class ExportStoreConfig:
    """Write a store in the format of another trainer, one record an example."""

    store: tyro.conf.Positional[str]
    """Directory or URL of the store."""
    format: ExportFormat
    """Format: distillkit (compressed Parquet), axolotl (the columns that its trainer reads), or
    parquet (lists of unequal length, for any script)."""
    out: Path
    """Folder to write; it must be new or empty."""


def export_store_command(config: ExportStoreConfig) -> None:
    """Run `caskd store export`."""
    store = TeacherStore.open(config.store)
    report = export_store(store, config.format, config.out)
    skipped = f"; {report.num_skipped:,} examples without a row left out"
    tell(
        f"wrote {config.out}: {counted(report.num_rows, 'row')} of "
        f"{counted(report.num_examples, 'example')} in {counted(report.num_files, 'file')}"
        f"{skipped if report.num_skipped else ''}"
    )


def push_command(config: PushConfig) -> None:
    """Run `caskd store push`."""
    _check_directory(config.store, "from a URL, run caskd store pull URL DIRECTORY")
    report = push_store(config.store, config.url, quiet=False)
    print_copy_report(config.store, config.url, report)


def pull_command(config: PullConfig) -> None:
    """Run `caskd store pull`."""
    _check_directory(config.directory, "to a URL, run caskd store push DIRECTORY URL")
    report = pull_store(config.url, config.directory, quiet=False)
    print_copy_report(config.url, config.directory, report)


def _check_directory(path: str, instead: str) -> None:
    if is_remote(path):
        raise UsageError(f"{clean_url(path)} is a URL; expected a directory. To copy {instead}")


def print_copy_report(source: str, target: str, report: CopyReport) -> None:
    """Print one line about a finished push or pull."""
    tell(
        f"{escape_control(clean_url(source))} -> {escape_control(clean_url(target))}: sealed, "
        f"{counted(report.num_files, 'file')} ({report.num_sent:,} sent now), "
        f"{bytes_text(report.num_bytes)}, digest {report.digest[:12]}"
    )


def list_command(config: ListConfig) -> None:
    """Run `caskd store ls`."""
    for line in listing_lines(list_stores(config.url), as_json=config.json):
        tell(line)


def card_command(config: CardConfig) -> None:
    """Run `caskd store card`."""
    check_new_page(config.html)
    store, policy = TeacherStore.open(config.store), RetryPolicy()
    storage = open_storage(config.store)
    existing = (read_whole(storage, README, policy) or b"").decode(errors="replace")
    quality = measure_quality(store, quiet=False)
    recorded = read_whole(storage, f"{ENVIRONMENT}/{PLAN_COUNTS}", policy)
    counts = read_text_counts(recorded) if recorded else {}
    text = card(store.spec, store.seal, quality, license_note(existing), counts)
    if config.html is not None:
        write_page(config.html, store_page(config.store, quality, license_note(existing)))
    else:
        tell("\n".join(escape_control(line) for line in text.splitlines()))
    if config.write:
        retry(lambda: storage.write(README, text.encode()), f"{storage.url}/{README}", policy)
        retry(storage.flush, storage.url, policy)
