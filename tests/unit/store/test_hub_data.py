"""Data files on the Hub, read from its cache without a network."""

import pytest
from helpers.tiny import ragged_records, write_jsonl
from huggingface_hub import constants

from caskd.store.corpus import read_records
from caskd.store.errors import UsageError

MAIN, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache with two revisions of a data set."""
    repository = tmp_path / "datasets--team--words"
    for revision, num in ((MAIN, 5), (OTHER, 3)):
        folder = repository / "snapshots" / revision / "data"
        folder.mkdir(parents=True)
        write_jsonl(folder / "train.jsonl", ragged_records(num, seed=num))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(MAIN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_file_of_a_data_set_is_read_like_any_other(cache, tmp_path):
    mine = write_jsonl(tmp_path / "mine.jsonl", ragged_records(2, seed=9))
    files = ["hf://datasets/team/words/data/train.jsonl", str(mine)]
    assert list(read_records(files)) == [*ragged_records(5, seed=5), *ragged_records(2, seed=9)]


def test_a_revision_may_be_named(cache):
    found = list(read_records([f"hf://datasets/team/words@{OTHER}/data/train.jsonl"]))
    assert found == ragged_records(3, seed=3)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://datasets/team/words/data/test.jsonl", "--data.*HF_TOKEN"),
        ("hf://datasets/team/nothing/data/train.jsonl", "--data.*HF_TOKEN"),
        ("hf://datasets/team/words", "expected hf://datasets/USER/NAME/PATH"),
        ("hf://team/words/train.jsonl", "expected hf://datasets/USER/NAME/PATH"),
        ("hf://datasets/team/words/../../etc/passwd", "HF_TOKEN|expected hf://"),
    ],
)
def test_mistakes_are_one_line(cache, url, said):
    with pytest.raises(UsageError, match=said) as caught:
        read_records([url])
    assert "\n" not in str(caught.value)
