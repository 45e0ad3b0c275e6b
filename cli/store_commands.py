"""`caskd store info | show | verify | repair | seal | diff`: commands on one store."""

import json
from dataclasses import dataclass

import tyro

from caskd.cli.store_pages import check_new_page, example_page, store_page, write_page
from caskd.store.errors import IncompleteError, UsageError
from caskd.store.inspect import diff_lines, diff_stores, info_text, store_info, watch
from caskd.store.io import bytes_text, counted, tell
from caskd.store.read import TeacherStore
from caskd.store.storage import clean_url, is_remote
from caskd.store.verify import repair_lines, repair_store, verify_store
from caskd.store.write import StoreWriter


@dataclass(frozen=True)
class InfoConfig:
    """Show a store's teacher, counts and sizes, and whether it is sealed."""

    store: tyro.conf.Positional[str]
    """Directory or URL of the store."""
    json: bool = False
    """Print one JSON object instead of text."""
    watch: bool = False
    """Show the progress of a capture until the store is sealed; works on any machine."""
    html: str | None = None
    """Write a page to this new HTML file instead of text; the page loads nothing."""


@dataclass(frozen=True)
class ShowConfig:
    """Show one example token by token: label, teacher's choices, rank of the label."""

    store: tyro.conf.Positional[str]
    """Directory or URL of the store."""
    example: int = 0
    """Index of the example, from 0."""
    json: bool = False
    """Print one JSON object instead of text."""
    html: str | None = None
    """Write a page to this new HTML file instead of text; the page loads nothing."""


@dataclass(frozen=True)
class VerifyConfig:
    """Read every byte again and compare it with the commit records; exit 1 on any problem."""

    store: tyro.conf.Positional[str]
    """Directory of the store."""
    full: bool = False
    """Also compare sha256 and check the values of every row."""
    sample: str | None = None
    """Check only a random fraction of the shards, such as 5% or 0.05."""
    seed: int = 0
    """Seed of the random choice of --sample."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True)
class RepairConfig:
    """Remove damaged parts of a store, for caskd precompute to redo; stop all writers first."""

    store: tyro.conf.Positional[str]
    """Directory of the store."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True)
class SealConfig:
    """Seal a store whose shards are all committed, after reading every byte again."""

    store: tyro.conf.Positional[str]
    """Directory of the store."""


@dataclass(frozen=True)
class DiffConfig:
    """Compare the identities and rows of two stores; exit 1 if they differ."""

    a: tyro.conf.Positional[str]
    """Directory of store A."""
    b: tyro.conf.Positional[str]
    """Directory of store B."""
    json: bool = False
    """Print one JSON object instead of text."""


def info_command(config: InfoConfig) -> None:
    """Run `caskd store info`."""
    check_new_page(config.html)
    if config.watch:
        watch(TeacherStore.open(config.store, allow_unsealed=True))
    if config.html is not None:
        write_page(config.html, store_page(config.store))
        return
    info = store_info(config.store)
    tell(json.dumps(info, indent=1) if config.json else info_text(info))


def show_command(config: ShowConfig) -> None:
    """Run `caskd store show`."""
    from caskd.store.inspect import example_json, example_view

    check_new_page(config.html)
    store = TeacherStore.open(config.store, allow_unsealed=True)
    if config.json:
        tell(json.dumps(example_json(store, config.example), indent=1))
        return
    if config.html is not None:
        write_page(config.html, example_page(store, config.example))
        return
    from rich.console import Console

    Console().print(example_view(store, config.example))


def verify_command(config: VerifyConfig) -> int:
    """Run `caskd store verify`; return 1 on any problem."""
    if is_remote(config.store):
        url = clean_url(config.store)
        raise UsageError(
            f"{url}: is a URL; expected a directory; to copy the store and check every byte, run "
            f"caskd store pull {url} DIRECTORY"
        )
    fraction = None if config.sample is None else _fraction(config.sample)
    report = verify_store(
        config.store, full=config.full, sample=fraction, seed=config.seed, quiet=config.json
    )
    if config.json:
        tell(json.dumps({"ok": report.ok, **vars(report)}, indent=1))
    else:
        for problem in report.problems:
            tell(f"{'unreadable' if problem in report.unreadable else 'wrong'}: {problem}")
        checked = f"{counted(report.num_files, 'file')}, {bytes_text(report.num_bytes)}"
        rows = f", {counted(report.num_rows, 'row')}" if config.full else ""
        verdict = "ok" if report.ok else counted(len(report.problems), "problem")
        if report.unreadable:
            verdict += f", {len(report.unreadable)} of them unreadable, which is not damage"
        tell(f"{config.store}: {verdict} ({checked}{rows})")
    return 0 if report.ok else 1


def _fraction(text: str) -> float:
    """The number of `5%` or `0.05`."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UsageError(
            f"--sample {text!r}: expected a fraction such as 5% or 0.05; pass one of these forms"
        ) from None


def repair_command(config: RepairConfig) -> None:
    """Run `caskd store repair`."""
    report = repair_store(config.store)
    if config.json:
        tell(json.dumps(vars(report), indent=1))
    else:
        tell("\n".join(repair_lines(config.store, report)))


def seal_command(config: SealConfig) -> None:
    """Run `caskd store seal`."""
    store = TeacherStore.open(config.store, allow_unsealed=True)
    missing = store.spec.num_shards - store.num_committed_shards()
    if missing:  # refused before a writer tries whether it may write
        raise IncompleteError(
            f"{config.store}: {missing:,} of {counted(store.spec.num_shards, 'shard')} not "
            "committed; run caskd precompute again to fill what is missing"
        )
    totals = StoreWriter(config.store).seal()
    tell(f"{config.store}: sealed, digest {totals['commits_digest']}")


def diff_command(config: DiffConfig) -> int:
    """Run `caskd store diff`; return 1 if the stores differ."""
    found = diff_stores(config.a, config.b, quiet=config.json)
    if config.json:
        tell(json.dumps({"same": found.same, **vars(found)}, indent=1))
    else:
        tell("\n".join(diff_lines(found)))
    return 0 if found.same else 1
