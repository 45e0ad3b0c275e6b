"""hf:// against the shape of the Hub's API, through the real huggingface_hub."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.hub_server import TOKEN, Hub, hub_server
from helpers.stores import make_store, tree

from caskd.store import TeacherStore, pull_store, push_store
from caskd.store.errors import IdentityError, StoreError, StoreNotFoundError
from caskd.store.share import list_stores
from caskd.store.storage import RetryPolicy

QUICK = RetryPolicy(attempts=4, first_pause=0.0)
URL = "hf://datasets/team/cask"

# huggingface_hub passes a file to its HTTP client in a way that the client calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import close_session, constants

    with hub_server() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # Read from the environment when the library was imported, which may be long ago.
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        close_session()
        yield made
        close_session()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "store", num=4, shard_rows=16)
    return tmp_path / "store"


def test_there_and_back(hub: Hub, store: Path, tmp_path: Path) -> None:
    pushed = push_store(store, URL, policy=QUICK)
    assert pushed.num_sent == pushed.num_files
    assert hub.private == {"team/cask"}
    assert hub.repositories["team/cask"] == tree(store)
    # The claim comes first and the seal last, each in a commit of its own.
    assert hub.commits[0][1] == ["commits/commits.sha256"]
    assert hub.commits[-1][1] == ["seal.json"]
    assert len(hub.commits) == 4
    pull_store(URL, tmp_path / "copy", policy=QUICK)
    assert tree(tmp_path / "copy") == tree(store)
    uploads = hub.uploads
    assert push_store(store, URL, policy=QUICK).num_sent == 0
    assert (hub.uploads, len(hub.commits)) == (uploads, 4)


def test_a_folder_of_a_repository(hub: Hub, store: Path, tmp_path: Path) -> None:
    push_store(store, f"{URL}/v1", policy=QUICK)
    make_store(tmp_path / "other", num=4, seed=1)
    push_store(tmp_path / "other", f"{URL}/v2", policy=QUICK)
    listed = list_stores(URL, policy=QUICK)
    assert [(e.url, e.state) for e in listed] == [(f"{URL}/v1", "sealed"), (f"{URL}/v2", "sealed")]
    before = (hub.uploads, len(hub.commits), dict(hub.repositories["team/cask"]))
    with pytest.raises(IdentityError, match="another store"):
        push_store(store, f"{URL}/v2", policy=QUICK)
    assert (hub.uploads, len(hub.commits), hub.repositories["team/cask"]) == before


def test_reading_from_the_hub(
    hub: Hub, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_store(store, URL, policy=QUICK)
    monkeypatch.setenv("CASKD_CACHE", str(tmp_path / "cache"))
    remote, local = TeacherStore.open(URL), TeacherStore.open(store)
    np.testing.assert_array_equal(remote.read([0, 3]).topk_logits, local.read([0, 3]).topk_logits)


def test_the_token_stays_with_the_hub(hub: Hub, store: Path, tmp_path: Path) -> None:
    """The Hub redirects large files to hosts of its storage provider."""
    push_store(store, URL, policy=QUICK)
    with hub_server() as provider:
        provider.repositories = hub.repositories
        hub.content_host = provider
        pull_store(URL, tmp_path / "copy", policy=QUICK)
        assert tree(tmp_path / "copy") == tree(store)
        assert set(hub.tokens) == {f"Bearer {TOKEN}"}
        assert provider.tokens
        assert set(provider.tokens) == {None}


@pytest.mark.parametrize("statuses", [[503], [429, 503], [500]])
def test_failures_are_retried(statuses: list[int], hub: Hub, store: Path, tmp_path: Path) -> None:
    push_store(store, URL, policy=QUICK)
    hub.fail_next = statuses
    pull_store(URL, tmp_path / "copy", policy=QUICK)
    assert hub.fail_next == []
    assert tree(tmp_path / "copy") == tree(store)


def test_a_lost_response_is_no_conflict(hub: Hub, store: Path) -> None:
    hub.lose_next_commit = True
    push_store(store, URL, policy=QUICK)
    assert hub.repositories["team/cask"] == tree(store)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_fix_and_no_secret(status: int, hub: Hub, store: Path) -> None:
    hub.fail_next = [status] * 3
    with pytest.raises(StoreError, match="HF_TOKEN") as refused:
        push_store(store, URL, policy=QUICK)
    assert TOKEN not in str(refused.value)
    assert str(status) in str(refused.value)


def test_a_missing_store(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        pull_store("hf://datasets/team/nothing", tmp_path / "copy", policy=QUICK)


def test_offline_mode_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set"):
        pull_store(URL, tmp_path / "copy", policy=QUICK)
