"""Data files on the Hub, from its cache: no network here."""

import pytest
from helpers.records import write_jsonl
from huggingface_hub import constants

from caskd.store.corpus import read_records
from caskd.store.errors import UsageError

MAIN, OTHER = "a" * 40, "b" * 40


def records(num, name):
    return [{"prompt": f"{name} {n}", "response": f"word {n}"} for n in range(num)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache with two revisions of a data set."""
    repository = tmp_path / "datasets--team--words"
    for revision, num, name in ((MAIN, 5, "main"), (OTHER, 3, "other")):
        folder = repository / "snapshots" / revision / "data"
        folder.mkdir(parents=True)
        write_jsonl(folder / "train.jsonl", records(num, name))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(MAIN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_file_of_a_data_set_is_read_like_any_other(cache, tmp_path):
    mine = write_jsonl(tmp_path / "mine.jsonl", records(2, "mine"))
    files = ["hf://datasets/team/words/data/train.jsonl", str(mine)]
    assert list(read_records(files)) == [*records(5, "main"), *records(2, "mine")]


def test_a_revision_may_be_named(cache):
    found = list(read_records([f"hf://datasets/team/words@{OTHER}/data/train.jsonl"]))
    assert found == records(3, "other")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://datasets/team/words/data/test.jsonl", "the Hub gave"),
        ("hf://datasets/team/nothing/data/train.jsonl", "the Hub gave"),
        ("hf://datasets/team/words", "expected hf://datasets/USER/NAME/PATH"),
        ("hf://team/words/train.jsonl", "expected hf://datasets/USER/NAME/PATH"),
        ("hf://datasets/team/words/../../etc/passwd", "the Hub gave|expected hf://"),
    ],
)
def test_mistakes_are_one_line(cache, url, said):
    with pytest.raises(UsageError, match=said) as caught:
        read_records([url])
    assert "\n" not in str(caught.value)
