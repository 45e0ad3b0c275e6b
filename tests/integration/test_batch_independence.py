"""Numbers do not depend on the batch: of captures, training, next tokens and predictions."""

import json

import numpy as np
import pytest
from helpers import training
from helpers.architectures import ORIGINAL, save
from helpers.captures import config_for
from helpers.tiny import ragged_records, save_tiny, write_jsonl

from caskd.cli.main import main
from caskd.eval.answers import read_predictions
from caskd.eval.next_token.teacher_forcing import student_rows
from caskd.models.decoding import load_for_decoding
from caskd.precompute import precompute
from caskd.store import TeacherStore
from caskd.train import train

RECORDS = ragged_records(30)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of a longrope teacher, and that model as the student."""
    root = tmp_path_factory.mktemp("batches")
    save("phi3-longrope", root / "student")
    precompute(config_for(root / "student", root, RECORDS))
    lengths = TeacherStore.open(root / "store").token_counts()
    assert lengths.min() < ORIGINAL < lengths.max()
    return root


def rows_of(store):
    store = TeacherStore.open(store)
    return store.read(np.arange(len(store)))


@pytest.mark.parametrize("name", ["phi3-longrope", "gemma2", "llama"])
def test_a_capture_has_the_rows_of_one_example_at_a_time(name, tmp_path):
    folder = save(name, tmp_path / "teacher")
    stores = []
    for budget in (1, 1000):
        place = tmp_path / str(budget)
        place.mkdir()
        precompute(config_for(folder, place, RECORDS, token_budget=budget))
        stores.append(rows_of(place / "store"))
    alone, together = stores
    np.testing.assert_array_equal(together.argmax, alone.argmax)
    np.testing.assert_allclose(together.topk_logits, alone.topk_logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(together.logsumexp, alone.logsumexp, rtol=1e-4)


def test_training_does_not_depend_on_micro_batches(root, tmp_path):
    lines = []
    for name, options in {
        "alone": {"micro_batch_size": 1},
        "together": {"micro_batch_size": 8},
        "tokens": {"token_budget": 400},
    }.items():
        config = training.config_for(root, out=str(tmp_path / name), steps=3, **options)
        train(config)
        lines.append(training.read_metrics(config.out))
    for other in lines[1:]:
        for ours, theirs in zip(other, lines[0], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_next_tokens_do_not_depend_on_the_batch(root, monkeypatch):
    found = []
    for budget in (1, 4000):
        monkeypatch.setattr("caskd.eval.next_token.teacher_forcing.TOKEN_BUDGET", budget)
        loaded = load_for_decoding(str(root / "student"), "--student", device="cpu")
        found.append(student_rows(loaded, TeacherStore.open(root / "store"), None))
    np.testing.assert_allclose(found[1].label_logprob, found[0].label_logprob, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["phi3-longrope", "rwkv", "bart", "git", "mistral"])
def test_answers_do_not_depend_on_the_batch_size(name, tmp_path, capsys):
    folder, data = save(name, tmp_path / "model"), tmp_path / "data.jsonl"
    write_jsonl(data, RECORDS[:16])
    answers = []
    for size in ("1", "8"):
        out = tmp_path / f"{size}.parquet"
        words = ["--max-new-tokens", "8", "--batch-size", size, "--device", "cpu"]
        assert (
            main(
                ["predict", "--model", str(folder), "--data", str(data), "--out", str(out), *words]
            )
            == 0
        )
        answers.append(read_predictions(str(out)).columns)
        warned = "one at a time" in capsys.readouterr().err
        assert warned == (size == "8" and name != "mistral")
    assert answers[1]["token_ids"].to_pylist() == answers[0]["token_ids"].to_pylist()
    pairs = zip(answers[1]["token_logprobs"], answers[0]["token_logprobs"], strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours.as_py(), theirs.as_py(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gemma3-bidirectional", "xlnet", "cpmant"])
def test_a_model_that_sees_later_tokens_is_refused_at_every_door(name, root, tmp_path, capsys):
    folder, data = save(name, tmp_path / "model"), tmp_path / "data.jsonl"
    write_jsonl(data, RECORDS)
    places = ["--data", str(data), "--device", "cpu"]
    capture = ["precompute", "--teacher", str(folder), "--store", str(tmp_path / "s"), *places]
    capture += ["--top-k", "8", "--max-length", "64"]
    doors = {
        "--teacher model": capture,
        f"--student {folder}": [
            "train", "--store", str(root / "store"), "--student", str(folder),
            "--out", str(tmp_path / "run"), "--steps", "2", "--global-batch-size", "8",
        ],
        f"--model {folder}": [
            "predict", "--model", str(folder), "--out", str(tmp_path / "p.parquet"), *places,
        ],
    }  # fmt: skip
    for flag, words in doors.items():
        assert main(words) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"caskd: {flag}: " in line, line
        assert "is not causal" in line


def test_a_student_of_a_right_model_prints_nothing_of_it(tmp_path, capsys):
    save_tiny(tmp_path / "student")
    precompute(config_for(tmp_path / "student", tmp_path, RECORDS))
    train(training.config_for(tmp_path, out=str(tmp_path / "run"), steps=1))
    assert "one at a time" not in "".join(capsys.readouterr())
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])["step"] == 1
