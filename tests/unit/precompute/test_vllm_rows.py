"""The hook inside vLLM's workers: rows of any schedule, and the self-test that compares them."""

import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_vllm import FakeEngine, FakeRunner, passes_of
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer

from caskd.models.engines import EngineError, EngineOptions, vllm_engine, vllm_worker
from caskd.precompute.rows import TopKTargets, assembled, pack
from caskd.precompute.rows.packed import unpack
from caskd.precompute.teacher import vllm_hook
from caskd.precompute.teacher.vllm_hook import RowHook, request_of
from caskd.precompute.teacher.vllm_source import public_batch_tokens
from caskd.precompute.teacher.vllm_teacher import (
    LiveEngine,
    VllmTeacher,
    prompt_rows,
    rows_distance,
)
from caskd.store.corpus import logit_positions, row_labels
from caskd.store.errors import TeacherError, UsageError
from caskd.store.write import ShardExample

K, NUM_IDS = 5, 50
CAPTURE = {"kind": "topk", "top_k": K, "min_mass": 1.0}


def example(index: int, length: int, seed: int) -> ShardExample:
    """Tokens of which some are response tokens, in several runs."""
    random = np.random.default_rng(seed)
    ids = random.integers(4, NUM_IDS, length).astype(np.uint32)
    response = (random.random(length) < 0.6).astype(np.uint8)
    response[[0, -1]] = 0, random.integers(0, 2)
    response[length // 2] = 1
    return ShardExample(index, ids, response, 0, int(response[1:].sum()))


EXAMPLES = [example(n, length, n) for n, length in enumerate((3, 40, 9, 33, 2, 17))]


def direct(model: Any, examples: Any) -> dict[str, np.ndarray]:
    """The rows of whole examples, one at a time."""
    parts = []
    for one in examples:
        with torch.inference_mode():
            logits = model(torch.from_numpy(one.token_ids.astype(np.int64))[None]).logits[0]
        labels = torch.from_numpy(row_labels(one.token_ids, one.is_response).astype(np.int64))
        targets = TopKTargets(K, 1.0)
        parts.append(
            targets.fields(logits[logit_positions(one.is_response)], labels, np.empty((0, 0)))
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(tiny_tokenizer())


def hooked(model: Any, passes: Any, *, sends: bool = True) -> tuple[RowHook, FakeRunner]:
    """A hook that has seen the passes."""
    runner = FakeRunner(model)
    hook = RowHook(runner, sends=sends)
    hook.targets, hook.num_columns = TopKTargets(K, 1.0), NUM_IDS
    runner._get_prompt_logprobs_dict = hook  # type: ignore[method-assign]
    positions = [logit_positions(e.is_response) for e in EXAMPLES]
    extras = [
        request_of(n, own, row_labels(e.token_ids, e.is_response), np.empty((len(own), 0)))
        for n, (e, own) in enumerate(zip(EXAMPLES, positions, strict=True))
    ]
    prompts = [
        e.token_ids[: own[-1] + 1].tolist() for e, own in zip(EXAMPLES, positions, strict=True)
    ]
    runner.run(prompts, extras, list(passes([len(p) for p in prompts])))
    return hook, runner


def in_random_parts(seed: int) -> Any:
    """Each pass has parts of some prompts, in any order."""

    def passes(lengths: list[int]) -> Any:
        random, left = np.random.default_rng(seed), list(lengths)
        while any(left):
            chosen = random.permutation(np.flatnonzero(left))[: random.integers(1, 4)].tolist()
            scheduled = {n: int(random.integers(1, left[n] + 1)) for n in chosen}
            for n, tokens in scheduled.items():
                left[n] -= tokens
            yield scheduled

    return passes


def check_equal(found: Any, expected: Any) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_array_equal(found[name], values)


def rows_of(hook: RowHook) -> Any:
    counts = [e.row_count for e in EXAMPLES]
    return TopKTargets(K, 1.0).stored(assembled(hook.pieces, counts))


@pytest.mark.parametrize("seed", range(8))
def test_rows_do_not_depend_on_the_schedule(
    model: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_hook, "MIN_TILE_ROWS", 3)
    monkeypatch.setattr(vllm_hook, "TILE_BYTES", {"cpu": 0})
    monkeypatch.setattr(vllm_hook, "SLICE_LOGITS", {"cpu": 2 * NUM_IDS})
    hook, runner = hooked(model, in_random_parts(seed))
    check_equal(rows_of(hook), direct(model, EXAMPLES))
    assert max(runner.head_rows) <= 3
    assert sum(runner.head_rows) == sum(e.row_count for e in EXAMPLES), "no row of a prompt"


def test_a_row_behind_the_last_token_of_a_part_is_not_lost_or_shifted(model: Any) -> None:
    for budget in range(1, 9):  # every border falls on a row once
        hook, _ = hooked(model, lambda lengths, n=budget: passes_of(lengths, n))
        check_equal(rows_of(hook), direct(model, EXAMPLES))


def test_an_example_that_starts_anew_counts_once(model: Any) -> None:
    hook, _ = hooked(model, lambda lengths: passes_of(lengths, 7))
    hook.pieces = hook.pieces[:3] + hook.pieces
    check_equal(rows_of(hook), direct(model, EXAMPLES))


def test_the_other_workers_of_a_group_run_the_head_as_often_and_send_nothing(model: Any) -> None:
    (first, one), (second, two) = (
        hooked(model, in_random_parts(1), sends=sends) for sends in (True, False)
    )
    assert one.head_rows == two.head_rows
    assert first.pieces
    assert not second.pieces


def test_missing_rows_are_an_error(model: Any) -> None:
    hook, _ = hooked(model, lambda lengths: passes_of(lengths, 7))
    counts = [e.row_count for e in EXAMPLES]
    with pytest.raises(TeacherError, match=rf"of {sum(counts)} rows"):
        assembled(hook.pieces[1:], counts)
    with pytest.raises(TeacherError, match="of example 1"):
        assembled(hook.pieces, [counts[0], 1, *counts[2:]])
    with pytest.raises(TeacherError, match="of example 5"):
        assembled(hook.pieces, counts[:5])


def test_columns_keep_their_values_and_shapes() -> None:
    columns = {
        "topk_ids": torch.arange(6).reshape(2, 3),
        "logsumexp": torch.tensor([1.5, -2.25], dtype=torch.float64),
    }
    found = unpack(pack(columns))
    for name, values in columns.items():
        np.testing.assert_array_equal(found[name], values.numpy())
        assert found[name].itemsize == 4


def live(folder: Path, **changes: Any) -> LiveEngine:
    """An engine of a model whose logits have two columns of padding."""
    engine_options = EngineOptions(folder, "tiny", "float32", 1, 256, 64, "")
    random = np.random.default_rng(0)
    prompts = random.integers(4, NUM_IDS, (4, 16)).tolist()
    settings = {"prompts": prompts, "num_columns": 52, "dtype": "float32", "hooked": True}
    return LiveEngine(lambda: FakeEngine(engine_options), **{**settings, **changes})


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("padded") / "tiny", vocab_size=52)


def test_columns_of_padding_are_cut_before_the_softmax(padded: Path) -> None:
    rows = VllmTeacher(live(padded), CAPTURE, NUM_IDS).rows(EXAMPLES)
    engine = FakeEngine(EngineOptions(padded, "tiny", "float32", 1, 256, 64, ""))
    runner = engine.workers[0].model_runner

    def cut(ids: torch.Tensor) -> Any:
        hidden = runner.body(ids).last_hidden_state
        return type("Output", (), {"logits": runner.head(hidden)[..., :NUM_IDS]})

    check_equal(rows, direct(cut, EXAMPLES))


real_request = request_of


def shifted_labels(number: int, positions: Any, labels: Any, numbers: Any) -> Any:
    return real_request(number, positions, np.roll(labels, 1), numbers)


def shifted_positions(number: int, positions: Any, labels: Any, numbers: Any) -> Any:
    return real_request(number, np.maximum(positions - 1, 0), labels, numbers)


@pytest.mark.parametrize("mutant", [shifted_labels, shifted_positions])
def test_the_self_test_sees_a_shift_by_one(
    padded: Path, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caskd.precompute.teacher.vllm_teacher.request_of", mutant)
    with pytest.raises(EngineError, match=r"nats from vLLM's own prompt"):
        live(padded).get()


def test_the_self_test_sees_another_head(padded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(self: FakeRunner, hidden: torch.Tensor) -> torch.Tensor:
        return 1.001 * self.head(hidden)

    live(padded).get()
    monkeypatch.setattr(FakeRunner, "compute_logits", scaled)
    with pytest.raises(EngineError, match=r"expected at most 0\.001"):
        live(padded).get()


def test_rows_of_another_shape_or_nan_are_infinitely_far(padded: Path, model: Any) -> None:
    rows = prompt_rows(direct(model, EXAMPLES))
    assert rows_distance(rows, [rows]) == 0
    assert rows_distance(rows, [rows, rows]) == np.inf
    assert rows_distance(rows, [replace(rows, logprobs=rows.logprobs[:, 1:])]) == np.inf
    assert (
        rows_distance(replace(rows, label_logprobs=rows.label_logprobs * np.nan), [rows]) == np.inf
    )


def test_a_runner_without_the_hook_is_refused_by_name(
    padded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeRunner, "_get_prompt_logprobs_dict")
    with pytest.raises(EngineError, match=r"no _get_prompt_logprobs_dict.*--backend server"):
        live(padded).get()


def test_an_answer_is_not_awaited_from_a_dead_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "_LIVENESS_SECONDS", 0.01)
    alive, dead = (SimpleNamespace(name="EngineCore", exitcode=code) for code in (None, -9))
    never = threading.Event()
    with pytest.raises(EngineError, match=r"EngineCore ended with -9"):
        vllm_engine.while_alive(never.wait, [alive, dead])
    never.set()
    slow = threading.Event()
    assert vllm_engine.while_alive(lambda: slow.wait(0.05), [alive]) is False
    with pytest.raises(ZeroDivisionError):
        vllm_engine.while_alive(lambda: 1 // 0, [alive])


def test_an_engine_ends_once_it_has_another_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    parents = iter([7, 7, 7, 7, 7, 1])
    monkeypatch.setattr(vllm_worker, "_FOLLOW_SECONDS", 0.0)

    def end(process: int, number: int) -> None:
        ended.append(process)
        if process == os.getpid():
            raise SystemExit  # this process would be gone

    def parent(process: int) -> int:
        assert not ended
        return next(parents)

    monkeypatch.setattr(vllm_worker, "_parent", parent)
    monkeypatch.setattr(vllm_worker.os, "kill", end)
    with pytest.raises(SystemExit):
        vllm_worker._follow(7, [11, 12])
    assert ended == [11, 12, os.getpid()]
    assert not list(parents)


def test_the_parent_of_a_process_is_known() -> None:
    assert vllm_worker._parent(os.getpid()) == os.getppid()


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.32.0", ("0.32", True)), ("0.32.1+cpu", ("0.32", True)), ("0.33.0", ("0.33", False)),
     ("1.0", ("1.0", False))],
)  # fmt: skip
def test_only_tested_releases_are_hooked(version: str, expected: tuple[str, bool]) -> None:
    assert vllm_engine.check_version(version, "--backend vllm") == expected


def test_older_and_missing_releases_are_refused() -> None:
    with pytest.raises(UsageError, match=r"vllm 0\.31\.2.*vllm>=0\.32,<0\.33.*caskd\[vllm\]"):
        vllm_engine.check_version("0.31.2", "--backend vllm")
    with pytest.raises(UsageError, match=r"needs vllm; run pip install 'caskd\[vllm\]'"):
        vllm_engine.check_version(None, "--backend vllm")


def test_a_pass_of_public_log_probabilities_is_bounded_by_the_vocabulary() -> None:
    assert public_batch_tokens(8192, 49_152) == 4369
    assert public_batch_tokens(8192, 152_064) == 1412
    assert public_batch_tokens(512, 152_064) == 512
    assert public_batch_tokens(512, 1 << 40) == 1
