"""`caskd store info | show | verify`: what the command line offers for a store."""

import json
from dataclasses import dataclass

import tyro

from caskd.store.info import info_text, store_info
from caskd.store.reader import TeacherStore
from caskd.store.verify import verify_store


@dataclass(frozen=True)
class InfoConfig:
    """Say what a store holds: teacher, counts, sizes, whether it is sealed."""

    store: tyro.conf.Positional[str]
    """The store's directory."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class ShowConfig:
    """Show one example token by token: labels, the teacher's choices, the label's rank."""

    store: tyro.conf.Positional[str]
    """The store's directory."""
    example: int = 0
    """Which example, counted from 0."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class VerifyConfig:
    """Re-read every byte and compare it with the commit records; exit 1 if anything is wrong."""

    store: tyro.conf.Positional[str]
    """The store's directory."""
    full: bool = False
    """Also compare sha256, and check the meaning of every row."""
    json: bool = False
    """Print one JSON object instead of lines."""


def info_command(config: InfoConfig) -> None:
    """Print what `caskd store info` prints."""
    info = store_info(config.store)
    print(json.dumps(info, indent=1) if config.json else info_text(info))


def show_command(config: ShowConfig) -> None:
    """Print what `caskd store show` prints."""
    from caskd.store.show import example_json, example_view

    store = TeacherStore.open(config.store, allow_unsealed=True)
    if config.json:
        print(json.dumps(example_json(store, config.example), indent=1))
        return
    from rich.console import Console

    Console().print(example_view(store, config.example))


def verify_command(config: VerifyConfig) -> int:
    """Print what `caskd store verify` prints; returns 1 if anything is wrong."""
    report = verify_store(config.store, full=config.full, quiet=config.json)
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
