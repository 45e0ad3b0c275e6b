"""Answers with `--backend vllm`: equal to those of transformers, through deaths of the engine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_answers import FakeAnswerEngine, fake_answers
from helpers.tiny import ragged_records, save_tiny, write_jsonl

from caskd.cli.main import main
from caskd.eval.answers import read_predictions
from caskd.models.decoding import Sampling
from caskd.models.engines import EngineError, vllm_generation, vllm_worker

__all__ = ["fake_answers"]

RECORDS = [
    {**record, "response": "ab", "options": ["ab", "cd"]} if n % 3 == 0 else record
    for n, record in enumerate(ragged_records(20))
]
STOPS = ["--stop", "e", "--stop", "<eos>"]
COLUMNS = ["token_logprobs", "token_margins", "token_entropies", "option_logprobs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", seed=4, tie=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", RECORDS)


def words(folder: Path, data: Path, out: Path, *flags: str) -> list[str]:
    base = ["predict", "--model", str(folder), "--data", str(data), "--out", str(out)]
    limits = ["--max-new-tokens", "10", "--batch-size", "3", "--task-metric", "chrf"]
    return [*base, *limits, *flags]


@pytest.fixture(scope="module")
def local(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of transformers."""
    out = tmp_path_factory.mktemp("local") / "local.parquet"
    assert main(words(folder, data, out, "--device", "cpu", *STOPS)) == 0
    return out


def differing(first: Path, second: Path) -> list[str]:
    """Columns in which two predictions files differ, but for times and rounding."""
    ours, theirs = (read_predictions(str(file)).columns for file in (first, second))
    assert ours.column_names == theirs.column_names
    found = []
    for name in set(ours.column_names) - {"seconds"}:
        pairs = list(zip(ours[name].to_pylist(), theirs[name].to_pylist(), strict=True))
        if name in COLUMNS:
            assert any(a for a, _ in pairs)
            same = all(
                a == b or (len(a) == len(b) and np.allclose(a, b, atol=2e-5)) for a, b in pairs
            )
        else:
            same = all(a == b for a, b in pairs)
        found += [] if same else [name]
    return sorted(found)


def test_every_column_equals_that_of_transformers(
    folder: Path, data: Path, local: Path, tmp_path: Path, fake_answers: type[FakeAnswerEngine]
) -> None:
    out = tmp_path / "a.parquet"
    line = words(folder, data, out, "--backend", "vllm", "--tensor-parallel", "2", *STOPS)
    assert main(line) == 0
    assert differing(out, local) == []
    found = read_predictions(str(out))
    lengths = {len(ids) for ids in found.columns["token_ids"].to_pylist()}
    assert min(lengths) < max(lengths) == 10
    theirs = read_predictions(str(local)).metadata["model"]
    engine = {"engine": "vllm", "engine_version": "0.32", "tensor_parallel": 2}
    assert found.metadata["model"] == {**theirs, **engine}
    assert found.metadata["decoding"]["stop_ids"]
    assert found.numbers("seconds").min() > 0
    (used,) = fake_answers.started
    assert used.closed
    assert used.options.tensor_parallel == 2
    assert not used.running  # answers behind a stop text are ended in the engine
    assert main(line) == 0
    assert main(words(folder, data, out, *STOPS)) == 3  # an engine's answers are no others
    assert len(fake_answers.started) == 1


@pytest.mark.parametrize("mutant", ["place", "row", "margin"])
def test_a_shift_of_the_recorder_is_seen(
    folder: Path, data: Path, local: Path, tmp_path: Path, fake_answers: type[FakeAnswerEngine],
    mutant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Steps that are recorded for another token end the run; other numbers change a column."""
    real_figures, real_answer = vllm_worker.step_figures, vllm_worker.StepRecorder.answer
    if mutant == "place":

        def lengthened(self: Any, extra: Any, ids: Any) -> Any:
            return real_answer(self, extra, list(ids))  # stays empty

        monkeypatch.setattr(vllm_worker.StepRecorder, "answer", lengthened)
        monkeypatch.setattr(vllm_worker.StepRecorder, "take", lambda self, names: [
            ([step for _, step in sorted(self._kept.pop(name).steps.items())][1:], None)
            for name in names
        ])  # fmt: skip
    else:
        change = (lambda f: f.roll(1, 0)) if mutant == "row" else halved_margins
        monkeypatch.setattr(vllm_worker, "step_figures", lambda p: change(real_figures(p)))
    out = tmp_path / "a.parquet"
    status = main(words(folder, data, out, "--backend", "vllm", *STOPS))
    if mutant == "place":
        assert status == 1
        assert "expected the same ones" in capsys.readouterr().err
    else:
        assert "token_margins" in differing(out, local)


def halved_margins(figures: Any) -> Any:
    return figures * figures.new_tensor([1.0, 0.5, 1.0])


def test_a_dead_engine_loses_no_finished_part_and_workers_share(
    folder: Path, data: Path, local: Path, tmp_path: Path, fake_answers: type[FakeAnswerEngine],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "a.parquet"
    line = words(folder, data, out, "--backend", "vllm", *STOPS)

    def dies(engine: FakeAnswerEngine) -> None:
        if engine.num_steps == 30:
            raise EngineError("--backend vllm: the engine failed (EngineDeadError)")

    fake_answers.fault = staticmethod(dies)
    assert main(line) == 1
    assert "the engine failed" in capsys.readouterr().err
    parts = len(list(Path(f"{out}.parts").glob("*.parquet")))
    assert parts > 0
    assert fake_answers.started[0].closed
    fake_answers.fault = staticmethod(lambda _: None)
    assert main([*line, "--num-workers", "2", "--worker", "1"]) == 0
    assert not out.exists()
    assert main(line) == 0
    assert differing(out, local) == []
    begun = [len(engine.names) for engine in fake_answers.started]
    assert begun[1] + begun[2] <= len(RECORDS) - parts


@pytest.mark.parametrize("heat", [(), ("--temperature", "1.3", "--seed", "7")])
def test_a_corpus_of_answers_equals_that_of_transformers(
    folder: Path, data: Path, tmp_path: Path, fake_answers: type[FakeAnswerEngine],
    heat: tuple[str, ...],
) -> None:  # fmt: skip
    ours, plain = tmp_path / "ours.jsonl", tmp_path / "plain.jsonl"
    base = ["precompute", "--teacher", str(folder), "--data", str(data), *heat]
    base += ["--max-new-tokens", "24", "--sample-responses"]
    assert main([*base, str(plain), "--device", "cpu"]) == 0
    half = [*base, str(ours), "--backend", "vllm"]
    assert main([*half, "--num-workers", "2", "--worker", "0"]) == 0
    assert main(half) == 0
    assert ours.read_text() == plain.read_text()
    finished = [json.loads(text)["finished"] for text in ours.read_text().splitlines()]
    assert set(finished) == {True, False}
    request = json.loads(Path(f"{ours}.request.json").read_text())
    assert request["teacher"]["engine"] == "vllm"
    assert main([*base, str(ours), "--device", "cpu"]) == 3


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (["--hidden", "-1"], ("--hidden", "--backend transformers")),
        (["--large", "other", "--token-rule", "chow"], ("--large", "one model")),
        (["--device", "cpu"], ("--device", "its own devices")),
        (["--url", "http://localhost:1"], ("--url", "--backend server")),
        (["--api", "chat"], ("--api chat", "--backend server")),
        (["--tensor-parallel", "0"], ("--tensor-parallel 0", "1 to")),
        (["--max-new-tokens", "300"], ("300", "256")),
        (["--model", ""], ("--model", "missing")),
    ],
)
def test_mistakes_are_refused_before_the_engine_starts(
    folder: Path, data: Path, tmp_path: Path, fake_answers: type[FakeAnswerEngine],
    flags: list[str], facts: tuple[str, ...], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    line = words(folder, data, tmp_path / "a.parquet", "--backend", "vllm", *flags)
    assert main(line) == 2
    error = capsys.readouterr().err
    assert all(fact in error for fact in facts), error
    assert not fake_answers.started


def test_an_absent_or_untested_vllm_is_named(
    folder: Path, data: Path, tmp_path: Path, fake_answers: type[FakeAnswerEngine],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    line = words(folder, data, tmp_path / "a.parquet", "--backend", "vllm")
    for version, fact in (("0.33.1", "0.33 is not a tested"), (None, "pip install 'caskd[vllm]'")):
        monkeypatch.setattr(vllm_generation, "vllm_version", lambda version=version: version)
        assert main(line) == 2
        assert fact in capsys.readouterr().err
    assert main([*line[:-2], "--tensor-parallel", "2"]) == 2
    assert "--backend vllm" in capsys.readouterr().err


def test_an_id_that_no_answer_has_is_never_drawn() -> None:
    import torch

    recorder, ids = vllm_worker.StepRecorder(), [1]
    asked = vllm_worker.answer_request(
        "0", options=[], banned=2, sampling=Sampling(1.0, 0), key="0"
    )
    recorder.rows = {0: recorder.answer(asked, ids)}
    recorder.step(torch.tensor([[0.0, 0.0, 50.0]]))
    ((steps, _),) = recorder.take(["0"])
    assert steps[0][0] in (0, 1)
    assert steps[0][1] == pytest.approx(-np.log(2))
