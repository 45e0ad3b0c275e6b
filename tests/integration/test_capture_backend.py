"""The seam of teachers: plan, probe and capture run with a backend that has no model at all."""

import json
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from helpers.captures import config_for
from helpers.tiny import tiny_tokenizer

from caskd.cli.main import main
from caskd.precompute import precompute
from caskd.precompute.planning import identity
from caskd.precompute.rows import targets_of
from caskd.precompute.teacher import factory, find_teacher
from caskd.store.corpus import row_labels
from caskd.store.errors import IdentityError, UsageError
from caskd.store.verify import verify_store

NUM_IDS = 50


class Bigram:
    """A teacher whose logits depend on the label alone."""

    def __init__(self, spec, calls):
        self.targets, self.calls = targets_of(spec), calls

    def rows(self, examples):
        self.calls.append("rows")
        labels = np.concatenate([row_labels(e.token_ids, e.is_response) for e in examples])
        labels = torch.from_numpy(labels.astype(np.int64))
        logits = torch.cos(labels[:, None] * 1.3 + torch.arange(NUM_IDS))
        return self.targets.fields(logits, labels, self.targets.numbers(examples))

    def describe(self):
        return {"packages": {"bigram": "1.0"}, "device": "cpu toy", "num_threads": 1}

    def peak_memory(self):
        return "process", 12_345_678

    def close(self):
        self.calls.append("close")


@dataclass
class BigramSource:
    """What a plan asks of it."""

    name: str = "bigram"
    tokenizer: object = field(default_factory=tiny_tokenizer)
    num_ids: int = NUM_IDS
    weights: None = None
    max_length: int = 100
    version: str = "1.0"
    calls: list = field(default_factory=list)

    def identity(self):
        return {
            "name": self.name, "revision": None, "weights_digest": "0" * 64, "adapter": None,
            "config_digest": "0" * 64,
        }  # fmt: skip

    def fingerprint(self):
        return None

    def capture(self):
        return {"load_dtype": "float32", "attention": None, "bigram_version": self.version}

    def load(self, spec, *, gpu=None):
        self.calls.append("load")
        return Bigram(spec, self.calls)


@pytest.fixture
def use(monkeypatch):
    """Adds a second backend that has this source, and lets captures use it."""

    def add(source):
        monkeypatch.setitem(factory._BACKENDS, "bigram", lambda config: source)
        monkeypatch.setattr(identity, "find_teacher", partial(find_teacher, backend="bigram"))

    return add


def test_a_capture_asks_its_backend_alone(use, tmp_path):
    source = BigramSource()
    use(source)
    store = precompute(config_for(tmp_path / "no-such-folder", tmp_path))
    assert verify_store(store.root, full=True).ok
    assert store.spec.identity["teacher"] == source.identity()
    assert store.spec.identity["capture"]["bigram_version"] == "1.0"
    assert store.spec.identity["text"]["max_length"] == 100
    assert source.calls[0] == "load"
    assert source.calls[-1] == "close"
    batch = store.read(range(len(store)))
    labels = row_labels(batch.token_ids, batch.is_response)
    expected = np.cos(labels[:, None] * np.float32(1.3) + np.arange(NUM_IDS)).argmax(axis=1)
    assert (batch.argmax == expected).mean() > 0.99  # rounding decides ties
    (record,) = (store.root / "environment").glob("*.json")
    facts = json.loads(record.read_text())
    assert (facts["device"], facts["packages"]["bigram"]) == ("cpu toy", "1.0")
    assert "torch" not in facts["packages"]


def test_another_version_of_a_backend_is_another_capture(use, tmp_path):
    use(BigramSource())
    precompute(config_for(tmp_path, tmp_path))
    use(BigramSource(version="2.0"))
    with pytest.raises(
        IdentityError, match=r"capture\.bigram_version is '1.0' there, but '2.0' here"
    ):
        precompute(config_for(tmp_path, tmp_path))


def test_a_probe_closes_the_teacher(use, tmp_path, capsys):
    source = BigramSource()
    use(source)
    config = config_for(tmp_path, tmp_path)
    words = ["plan", "--teacher", "bigram", "--data", *config.data, "--store", config.store]
    assert main([*words, "--top-k", "8", "--device", "cpu", "--probe", "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)["forecast"]
    assert (forecast["memory_of"], forecast["memory_bytes"]) == ("process", 12_345_678)
    assert (source.calls[0], source.calls[-1]) == ("load", "close")
    assert source.calls.count("rows") > 1


def test_an_unknown_backend_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--backend echo.*expected one of transformers"):
        find_teacher(config_for(tmp_path, tmp_path), backend="echo")
