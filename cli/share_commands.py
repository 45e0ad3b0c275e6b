"""`caskd store push | pull | ls | card`: what the command line offers for sharing stores."""

from dataclasses import dataclass

import tyro

from caskd.store.errors import UsageError
from caskd.store.format import README
from caskd.store.inspect import card, license_note, measure_quality
from caskd.store.io import clean
from caskd.store.read import TeacherStore
from caskd.store.share import CopyReport, list_stores, listing_lines, pull_store, push_store
from caskd.store.storage import RetryPolicy, clean_url, is_remote, open_storage, read_whole, retry


@dataclass(frozen=True)
class PushConfig:
    """Copy a sealed store to a place; run again, it goes on and checks what is there."""

    store: tyro.conf.Positional[str]
    """The store's directory."""
    url: tyro.conf.Positional[str]
    """Where to: a directory, s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/USER/NAME."""


@dataclass(frozen=True)
class PullConfig:
    """Copy a sealed store from a place to a directory; run again, it goes on."""

    url: tyro.conf.Positional[str]
    """Where from: a directory, s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/USER/NAME."""
    directory: tyro.conf.Positional[str]
    """The new store's directory."""


@dataclass(frozen=True)
class ListConfig:
    """List the stores at a place: itself if it is one, else those directly inside."""

    url: tyro.conf.Positional[str]
    """A directory, s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/USER/NAME."""
    json: bool = False
    """Print JSON instead of lines."""


@dataclass(frozen=True)
class CardConfig:
    """Print a store's card with the teacher's figures on the labels, measured now."""

    store: tyro.conf.Positional[str]
    """The store: a directory or a URL."""
    write: bool = False
    """Also write it to the store's README.md; what stands under License there is kept."""


def push_command(config: PushConfig) -> None:
    """Do what `caskd store push` does."""
    if is_remote(config.store):
        raise UsageError(
            f"{clean_url(config.store)}: push copies from a directory. To copy from a place, type: "
            "caskd store pull URL DIRECTORY"
        )
    _say(config.store, config.url, push_store(config.store, config.url, quiet=False))


def pull_command(config: PullConfig) -> None:
    """Do what `caskd store pull` does."""
    if is_remote(config.directory):
        raise UsageError(
            f"{clean_url(config.directory)}: pull copies to a directory. To copy to a place, type: "
            "caskd store push DIRECTORY URL"
        )
    _say(config.url, config.directory, pull_store(config.url, config.directory, quiet=False))


def _say(source: str, target: str, report: CopyReport) -> None:
    print(
        f"{clean(clean_url(source))} -> {clean(clean_url(target))}: sealed, "
        f"{report.num_files:,} files ({report.num_sent:,} sent now), "
        f"{report.num_bytes / 1e6:,.1f} MB, digest {report.digest[:12]}"
    )


def list_command(config: ListConfig) -> None:
    """Print what `caskd store ls` prints."""
    for line in listing_lines(list_stores(config.url), as_json=config.json):
        print(line)


def card_command(config: CardConfig) -> None:
    """Print what `caskd store card` prints, and write it if asked."""
    store, place, policy = (
        TeacherStore.open(config.store),
        open_storage(config.store),
        RetryPolicy(),
    )
    existing = (read_whole(place, README, policy) or b"").decode(errors="replace")
    quality = measure_quality(store, quiet=False)
    text = card(store.spec, store.seal, quality, license_note(existing))
    print("\n".join(clean(line) for line in text.splitlines()))
    if config.write:
        retry(lambda: place.write(README, text.encode()), f"{place.url}/{README}", policy)
        retry(place.flush, place.url, policy)
