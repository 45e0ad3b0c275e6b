"""Captures with `--backend vllm`: equal to those of transformers, through deaths of the engine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.captures import RECORDS, config_for, words_for
from helpers.fake_vllm import FakeEngine, FakeRunner, fake_vllm
from helpers.tiny import save_tiny

from caskd.cli.main import main
from caskd.models.engines import EngineError
from caskd.precompute import precompute
from caskd.store import TeacherStore, verify_store
from caskd.store.errors import FailedShardsError

__all__ = ["fake_vllm"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def plain(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> TeacherStore:
    """The capture of the same model by transformers."""
    return precompute(config_for(teacher, tmp_path_factory.mktemp("plain")))


def vllm_config(teacher: Path, folder: Path, **changes: Any) -> Any:
    folder.mkdir(exist_ok=True)
    options = {"backend": "vllm", "device": "auto", "token_budget": 64, **changes}
    return config_for(teacher, folder, **options)


def columns(store: TeacherStore, name: str) -> Any:
    return store.read(range(len(store))).column(name)


def check_equal(store: TeacherStore, plain: TeacherStore) -> None:
    """Every field equals that of transformers, to the rounding of float32."""
    assert verify_store(store.root, full=True).ok
    for name in ("topk_ids", "argmax", "label_rank", "num_kept"):
        np.testing.assert_array_equal(columns(store, name), columns(plain, name))
    for name in ("topk_logits", "logsumexp", "label_logit"):
        np.testing.assert_allclose(columns(store, name), columns(plain, name), rtol=0, atol=2e-4)
    np.testing.assert_allclose(columns(store, "tail_mass"), columns(plain, "tail_mass"), rtol=1e-3)


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_every_field_is_as_exact_as_with_transformers(
    teacher: Path,
    plain: TeacherStore,
    tmp_path: Path,
    fake_vllm: type[FakeEngine],
    tensor_parallel: int,
) -> None:
    words = words_for(vllm_config(teacher, tmp_path, tensor_parallel=tensor_parallel))
    assert main(words) == 0
    store = TeacherStore.open(tmp_path / "store")
    check_equal(store, plain)
    identity = store.spec.identity
    expected = {
        "engine": "vllm", "engine_version": "0.32", "values": "logits",
        "tensor_parallel": tensor_parallel, "load_dtype": "float32",
    }  # fmt: skip
    assert {name: identity["capture"][name] for name in expected} == expected
    assert identity["teacher"]["weights_digest"] == plain.spec.identity["teacher"]["weights_digest"]
    assert set(identity["teacher"]["fingerprint"]) >= {"label_logprobs", "tolerance"}
    (record,) = (store.root / "environment").glob("*.json")
    assert json.loads(record.read_text())["packages"]["vllm"] == "0.32.0"
    (engine,) = fake_vllm.started
    assert engine.closed
    assert len(engine.workers) == tensor_parallel


def test_an_example_of_the_models_own_length_fits(
    teacher: Path, tmp_path: Path, fake_vllm: type[FakeEngine]
) -> None:
    longest = [{"prompt": "a" * 200, "response": "bcd" * 18 + "e"}]  # and EOS: 256 tokens
    for name, changes in (("plain", {"backend": "transformers"}), ("vllm", {})):
        config = vllm_config(teacher, tmp_path / name, **changes)
        assert main(words_for(config_of(config, tmp_path / name, longest))) == 0
    stores = [TeacherStore.open(tmp_path / name / "store") for name in ("vllm", "plain")]
    assert len(stores[0].read([0]).token_ids) == 256
    check_equal(*stores)


def config_of(config: Any, folder: Path, records: Any) -> Any:
    from dataclasses import replace

    from helpers.tiny import write_jsonl

    return replace(config, data=(str(write_jsonl(folder / "data.jsonl", records)),))


def test_draws_are_those_of_transformers(
    teacher: Path, tmp_path: Path, fake_vllm: type[FakeEngine]
) -> None:
    stores = []
    for name, changes in (("plain", {"backend": "transformers"}), ("vllm", {})):
        config = vllm_config(teacher, tmp_path / name, top_k=None, sample=16, **changes)
        stores.append(precompute(config))
    same = columns(stores[0], "sampled_ids") == columns(stores[1], "sampled_ids")
    assert same.mean() > 0.999


def test_an_untested_release_gives_its_own_log_probabilities(
    teacher: Path,
    plain: TeacherStore,
    tmp_path: Path,
    fake_vllm: type[FakeEngine],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_vllm.version = "0.33.1"
    store = precompute(vllm_config(teacher, tmp_path))
    assert "vllm 0.33 is not a tested release" in capsys.readouterr().err
    capture = store.spec.identity["capture"]
    expected = {"values": "log-probs", "rank": "capped", "tail": "complement"}
    assert {name: capture[name] for name in expected} == expected
    assert store.spec.identity["text"]["max_length"] == 255
    total = columns(plain, "logsumexp")
    np.testing.assert_array_equal(columns(store, "topk_ids"), columns(plain, "topk_ids"))
    np.testing.assert_allclose(
        columns(store, "label_logit"), columns(plain, "label_logit") - total, atol=2e-4
    )
    np.testing.assert_allclose(
        columns(store, "tail_mass"), columns(plain, "tail_mass"), rtol=0, atol=5e-5
    )
    assert not columns(store, "logsumexp").any()
    assert store.seal["counts"]["capped_rows"] > 0
    with pytest.raises(Exception, match=r"--sample 5.*not a tested release"):
        precompute(vllm_config(teacher, tmp_path / "draws", top_k=None, sample=5))


def dying_at(number: int) -> Any:
    """A fault: the engine dies at its n-th run, and no later one does."""
    runs: list[int] = []

    def fault(engine: FakeEngine, prompts: Any) -> None:
        runs.append(1)
        if len(runs) == number:
            raise EngineError("--backend vllm: the engine failed (EngineDeadError)")

    return staticmethod(fault)


def test_a_dead_engine_fails_its_shard_and_a_new_one_fills_the_others(
    teacher: Path, plain: TeacherStore, tmp_path: Path, fake_vllm: type[FakeEngine]
) -> None:
    config = vllm_config(teacher, tmp_path)
    fake_vllm.fault = dying_at(40)  # behind the self-test and the fingerprint
    with pytest.raises(FailedShardsError, match=r"4 of 5 shards.*EngineDeadError"):
        precompute(config)
    assert [engine.closed for engine in fake_vllm.started] == [True, True]
    check_equal(precompute(config), plain)


def test_an_engine_that_computes_another_model_after_its_death_ends_the_capture(
    teacher: Path,
    tmp_path: Path,
    fake_vllm: type[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = vllm_config(teacher, tmp_path)
    fake_vllm.fault = dying_at(40)
    real = FakeRunner.compute_logits

    def other(self: FakeRunner, hidden: Any) -> Any:
        restarted = len(fake_vllm.started) > 1
        return real(self, hidden) * (1.05 if restarted else 1.0)

    monkeypatch.setattr(FakeRunner, "compute_logits", other)
    monkeypatch.setattr("caskd.precompute.teacher.vllm_teacher.TOLERANCE", {"float32": 99.0})
    assert main(words_for(config)) == 3
    error = capsys.readouterr().err
    assert "teacher.fingerprint" in error
    assert "--store" in error


def test_a_worker_asks_again_at_its_start(
    teacher: Path,
    tmp_path: Path,
    fake_vllm: type[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = vllm_config(teacher, tmp_path)
    assert main(["plan", *words_for(config)[1:]]) == 0
    assert "vllm 0.32" in capsys.readouterr().out
    real = FakeRunner.compute_logits
    monkeypatch.setattr(FakeRunner, "compute_logits", lambda self, h: 1.05 * real(self, h))
    monkeypatch.setattr("caskd.precompute.teacher.vllm_teacher.TOLERANCE", {"float32": 99.0})
    assert main(words_for(config)) == 3
    assert "teacher.fingerprint" in capsys.readouterr().err
    monkeypatch.undo()


def test_a_probe_measures_the_engine(
    teacher: Path,
    tmp_path: Path,
    fake_vllm: type[FakeEngine],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("caskd.precompute.planning.probe.PROBE_SECONDS", 0.2)
    words = ["plan", *words_for(vllm_config(teacher, tmp_path))[1:], "--probe", "--json"]
    assert main(words) == 0
    forecast = json.loads(capsys.readouterr().out)["forecast"]
    assert forecast["memory_of"] == "process"
    assert forecast["num_rows"] > 0
    assert all(engine.closed for engine in fake_vllm.started)


def test_nan_is_a_status_of_its_example_alone(
    teacher: Path, tmp_path: Path, fake_vllm: type[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = len(RECORDS) // 2
    real = FakeRunner.compute_logits
    rows: list[int] = []
    asked_before = 4 + 32 + 32  # the self-test and the fingerprint, alone and together

    def logits(self: FakeRunner, hidden: Any) -> Any:
        found = real(self, hidden)
        rows.append(len(found))
        return found * float("nan") if len(rows) == asked_before + spoilt else found

    monkeypatch.setattr(FakeRunner, "compute_logits", logits)
    store = precompute(vllm_config(teacher, tmp_path, max_non_finite=1.0, token_budget=600))
    assert store.seal["statuses"] == {"ok": len(RECORDS) - 1, "non_finite": 1}


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"deterministic": True}, ("--deterministic", "batches")),
        ({"attention": "sdpa"}, ("--attention",)),
        ({"device": "cpu"}, ("--device",)),
        ({"device_map": "auto"}, ("--device-map",)),
        ({"adapter": "somewhere"}, ("--adapter", "merge")),
        ({"executor": "ray", "num_workers": 2}, ("--executor ray", "--num-workers")),
        ({"url": ("http://localhost:1",)}, ("--url", "--backend server")),
        ({"backend": "transformers", "tensor_parallel": 2}, ("--tensor-parallel",)),
        ({"tensor_parallel": 0}, ("--tensor-parallel 0", "1 to")),
    ],
)
def test_flags_that_the_engine_decides_are_refused(
    teacher: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    facts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words_for(vllm_config(teacher, tmp_path, **changes))) == 2
    error = capsys.readouterr().err
    assert all(fact in error for fact in facts), error
    assert not (tmp_path / "store").exists()


def test_a_missing_vllm_is_named_with_its_pip_line(
    teacher: Path,
    tmp_path: Path,
    fake_vllm: type[FakeEngine],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_vllm.version = None
    assert main(words_for(vllm_config(teacher, tmp_path))) == 2
    assert "needs vllm; run pip install 'caskd[vllm]'" in capsys.readouterr().err


def test_another_checkpoint_or_flag_is_refused_before_the_engine_starts(
    teacher: Path, tmp_path: Path, fake_vllm: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    line = words_for(vllm_config(teacher, tmp_path))
    assert main(["plan", *line[1:]]) == 0
    assert len(fake_vllm.started) == 1
    other = save_tiny(tmp_path / "other" / "tiny", seed=1)
    words = [str(other) if word == str(teacher) else word for word in line]
    assert main(words) == 3
    assert "teacher.weights_digest" in capsys.readouterr().err
    assert main([*line, "--no-eos"]) == 3
    assert "text.eos" in capsys.readouterr().err
    assert len(fake_vllm.started) == 1
