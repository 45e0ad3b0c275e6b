"""`caskd store info | show | verify | repair | seal | diff`: the command line of one store."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from caskd.store.errors import UsageError
from caskd.store.inspect import diff_lines, diff_stores, info_text, store_info, watch
from caskd.store.read import TeacherStore
from caskd.store.storage import clean_url, is_remote
from caskd.store.verify import repair_lines, repair_store, verify_store
from caskd.store.write import StoreWriter


@dataclass(frozen=True)
class InfoConfig:
    """Say what a store holds: teacher, counts, sizes, whether it is sealed."""

    store: tyro.conf.Positional[str]
    """The store's directory."""
    json: bool = False
    """Print one JSON object instead of a table."""
    watch: bool = False
    """Show the progress of a capture, from any machine that sees the store, until it is sealed."""


@dataclass(frozen=True)
class ShowConfig:
    """Show one example token by token: labels, the teacher's choices, the label's rank."""

    store: tyro.conf.Positional[str]
    """The store's directory."""
    example: int = 0
    """Which example, counted from 0."""
    json: bool = False
    """Print one JSON object instead of a table."""
    html: str | None = None
    """Write the table to this file instead, as a page that loads nothing and runs nothing."""


@dataclass(frozen=True)
class VerifyConfig:
    """Re-read every byte and compare it with the commit records; exit 1 if anything is wrong."""

    store: tyro.conf.Positional[str]
    """The store's directory."""
    full: bool = False
    """Also compare sha256, and check the meaning of every row."""
    sample: str | None = None
    """Read only this part of the shards, chosen at random: 5%, or 0.05."""
    seed: int = 0
    """Which part that is."""
    json: bool = False
    """Print one JSON object instead of lines."""


@dataclass(frozen=True)
class RepairConfig:
    """Take out what does not verify, while nobody writes; the capture then puts it back."""

    store: tyro.conf.Positional[str]
    """The store's directory."""
    json: bool = False
    """Print one JSON object instead of lines."""


@dataclass(frozen=True)
class SealConfig:
    """Seal a store whose shards are all committed, after re-reading every byte."""

    store: tyro.conf.Positional[str]
    """The store's directory."""


@dataclass(frozen=True)
class DiffConfig:
    """In which identity fields and rows two stores differ; exit 1 if they do."""

    a: tyro.conf.Positional[str]
    """One store's directory."""
    b: tyro.conf.Positional[str]
    """The other's."""
    json: bool = False
    """Print one JSON object instead of lines."""


def info_command(config: InfoConfig) -> None:
    """Print what `caskd store info` prints."""
    if config.watch:
        watch(TeacherStore.open(config.store, allow_unsealed=True))
    info = store_info(config.store)
    print(json.dumps(info, indent=1) if config.json else info_text(info))


def show_command(config: ShowConfig) -> None:
    """Print what `caskd store show` prints."""
    from caskd.store.inspect import example_html, example_json, example_view

    store = TeacherStore.open(config.store, allow_unsealed=True)
    if config.json:
        print(json.dumps(example_json(store, config.example), indent=1))
        return
    if config.html is not None:
        page = Path(config.html)
        if page.exists():
            raise UsageError(f"--html {page}: is there already; give another file or remove it.")
        page.write_text(example_html(store, config.example), encoding="utf-8")
        print(f"wrote {page}")
        return
    from rich.console import Console

    Console().print(example_view(store, config.example))


def verify_command(config: VerifyConfig) -> int:
    """Print what `caskd store verify` prints; returns 1 if anything is wrong."""
    if is_remote(config.store):
        place = clean_url(config.store)
        raise UsageError(
            f"{place}: verify reads a directory. Copy the store, which checks every byte, with "
            f"caskd store pull {place} DIRECTORY"
        )
    part = None if config.sample is None else _part(config.sample)
    report = verify_store(
        config.store, full=config.full, sample=part, seed=config.seed, quiet=config.json
    )
    if config.json:
        print(json.dumps({"ok": report.ok, **vars(report)}, indent=1))
    else:
        for problem in report.problems:
            print(f"wrong: {problem}")
        checked = f"{report.num_files:,} files, {report.num_bytes / 1e6:,.1f} MB"
        rows = f", {report.num_rows:,} rows" if config.full else ""
        verdict = "ok" if report.ok else f"{len(report.problems)} problems"
        print(f"{config.store}: {verdict} ({checked}{rows})")
    return 0 if report.ok else 1


def _part(text: str) -> float:
    """`5%` or `0.05` as a number."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"--sample is {text!r}; expected a part, such as 5% or 0.05.") from None


def repair_command(config: RepairConfig) -> None:
    """Print what `caskd store repair` prints."""
    report = repair_store(config.store)
    if config.json:
        print(json.dumps(vars(report), indent=1))
    else:
        print("\n".join(repair_lines(config.store, report)))


def seal_command(config: SealConfig) -> None:
    """Print what `caskd store seal` prints."""
    totals = StoreWriter(config.store).seal()
    print(f"{config.store}: sealed, digest {totals['commits_digest']}")


def diff_command(config: DiffConfig) -> int:
    """Print what `caskd store diff` prints; returns 1 if the stores differ."""
    found = diff_stores(config.a, config.b, quiet=config.json)
    if config.json:
        print(json.dumps({"same": found.same, **vars(found)}, indent=1))
    else:
        print("\n".join(diff_lines(found)))
    return 0 if found.same else 1
