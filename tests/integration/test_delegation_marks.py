"""Marked facts: spans of characters of the corpus as rows of a store, and delegation among them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny import ragged_records, write_jsonl
from helpers.training import capture, config_for, read_metrics

from caskd.cli.main import main
from caskd.store import TeacherStore
from caskd.store.errors import IdentityError, UsageError
from caskd.train import train
from caskd.train.delegation import read_marks
from caskd.train.delegation.marks import _marked

RECORDS = ragged_records(40)


def with_marks(records):
    """Each response is marked from its second character to its middle."""
    return [
        {**one, "marks": [[1, len(one["response"]) // 2]] if len(one["response"]) > 3 else []}
        for one in records
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marks")
    capture(folder)
    write_jsonl(folder / "marked.jsonl", with_marks(RECORDS))
    return folder


def test_rows_are_marked_where_a_byte_of_their_token_is(root):
    store = TeacherStore.open(root / "store")
    marks = read_marks([store], [str(root / "marked.jsonl")])
    batch = store.read(np.arange(len(store)), ())
    found = marks.rows(batch)
    records = with_marks(RECORDS)
    special = store.spec.special_tokens["special_ids"]
    expected = []
    for example, start, end in zip(
        store.index.source_index, batch.row_offsets[:-1], batch.row_offsets[1:], strict=True
    ):
        record, place = records[example], 0
        for label in batch.labels[start:end].tolist():
            token = b"" if label in special else store.vocab[label]
            own = range(place, place + len(token))
            expected.append(any(a <= i < b for a, b in record["marks"] for i in own))
            place += len(token)
        assert place == len(record["response"])
    assert found.tolist() == expected
    assert 0.1 < np.mean(expected) == marks.share < 0.9


def test_marks_count_characters_and_tokens_bytes():
    parts = [b" ", "\u00e9".encode(), b"x", b"yz", b""]
    for span, wanted in (
        ([0, 1], [0, 1, 0, 0, 0]), ([1, 2], [0, 0, 1, 0, 0]), ([3, 4], [0, 0, 0, 1, 0]),
        ([0, 4], [0, 1, 1, 1, 0]),
    ):  # fmt: skip
        record = {"prompt": "p", "response": "\u00e9xyz and more", "marks": [span]}
        assert _marked([record], 0, "prompt", parts, "--data d").tolist() == wanted


@pytest.mark.slow
def test_a_run_delegates_marked_rows_and_continues(root):
    options = {"delegate": "fact-loss", "delegate_share": 0.9, "steps": 6, "save_every": 3}
    config = config_for(root, "facts", data=(str(root / "marked.jsonl"),), **options)
    train(config)
    lines = read_metrics(root / "facts")
    store = TeacherStore.open(root / "store")
    share = read_marks([store], config.data).share
    assert np.mean([line["delegated_share"] for line in lines[1:]]) == pytest.approx(share, abs=0.1)
    (root / "facts" / "checkpoints" / "step-00000006" / "COMPLETE").unlink()
    (root / "facts" / "last-save.json").unlink()
    other = [{**one, "marks": [[0, 1]]} for one in RECORDS]
    write_jsonl(root / "other.jsonl", other)
    with pytest.raises(IdentityError, match=r"--data.*marks other tokens"):
        train(replace(config, resume=True, data=(str(root / "other.jsonl"),)))
    train(replace(config, resume=True))
    assert read_metrics(root / "facts") == lines


def test_mistakes_are_named(root, tmp_path, capsys):
    base = [
        "train", "--store", str(root / "store"), "--student", str(root / "student"),
        "--out", str(tmp_path / "run"), "--steps", "2", "--delegate", "fact-loss",
    ]  # fmt: skip
    texts = {
        "none": RECORDS,
        "short": with_marks(RECORDS)[:5],
        "swapped": with_marks(RECORDS[::-1]),
        "wrong": [{**one, "marks": [[2, 999]]} for one in RECORDS],
        "text": [{**one, "marks": "1-3"} for one in RECORDS],
    }
    for name, records in texts.items():
        write_jsonl(tmp_path / f"{name}.jsonl", records)
    for words, code, named in (
        ([], 2, ("--delegate fact-loss", "--data")),
        (["none"], 2, ("no token", "marks")),
        (["short"], 3, ("5 records",)),
        (["swapped"], 3, ("record", "not the text")),
        (["wrong"], 2, ("[2, 999]",)),
        (["text"], 2, ("1-3", "record 0", "list")),
    ):
        given = [word for one in words for word in ("--data", str(tmp_path / f"{one}.jsonl"))]
        assert main([*base, *given]) == code, words
        error = capsys.readouterr().err
        assert all(part in error for part in named), error
    assert not (tmp_path / "run").exists()


def test_conversations_and_several_stores_are_refused(root):
    store = TeacherStore.open(root / "store")
    with pytest.raises(UsageError, match="2 stores"):
        read_marks([store, store], ["x.jsonl"])
    identity = json.loads(json.dumps(store.spec.identity))
    identity["text"]["kind"] = "messages"

    class Conversations:
        name = "chats"
        spec = replace(store.spec, identity=identity)

    with pytest.raises(UsageError, match="conversations"):
        read_marks([Conversations()], ["x.jsonl"])
