"""Captures by a real vLLM engine: equal to those of transformers, through kills. Needs vllm."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.captures import config_for, words_for
from helpers.packed import save_packed
from helpers.tiny import ragged_records, save_tiny, write_jsonl

from caskd.eval.answers import read_predictions
from caskd.models.engines import vllm_version
from caskd.precompute import precompute
from caskd.store import TeacherStore, verify_store

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(vllm_version() is None, reason="vllm is not installed"),
]
MODEL_LENGTH = 256
LONGEST = {"prompt": "a" * 150, "response": "bc" * 52 + "d"}  # with EOS the model's own length
RECORDS = [*ragged_records(60, seed=3), LONGEST]
BUDGET = 64
"""Tokens of a pass: long prompts are split, short ones share a pass."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32 numbers: vLLM's kernels for CPUs have no smaller ones."""
    return save_tiny(tmp_path_factory.mktemp("teacher") / "tiny", hidden=128)


def options(**changes: Any) -> dict[str, Any]:
    return {"backend": "vllm", "device": "auto", "token_budget": BUDGET, **changes}


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    """`caskd WORDS` in a process of its own."""
    environ = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two workers on one node of memory
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    program = Path(sys.executable).parent / "caskd"
    return subprocess.Popen(
        [str(program), *words],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(words: list[str], **environment: str) -> str:
    """Its stdout; it must succeed."""
    process = start(words, **environment)
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def check_equal(ours: TeacherStore, plain: TeacherStore) -> None:
    """Every field equals that of transformers, to the rounding of float32."""
    assert verify_store(ours.root, full=True).ok
    a, b = ours.read(range(len(ours))), plain.read(range(len(plain)))
    assert len(a.labels) == len(b.labels) > 0
    np.testing.assert_array_equal(a.column("argmax"), b.column("argmax"))
    assert (a.column("topk_ids") == b.column("topk_ids")).mean() > 0.999
    for name in ("logsumexp", "label_logit", "topk_logits"):
        np.testing.assert_allclose(a.column(name), b.column(name), rtol=0, atol=2e-4)
    np.testing.assert_allclose(a.column("tail_mass"), b.column("tail_mass"), rtol=1e-3, atol=0)
    assert (a.column("label_rank") == b.column("label_rank")).mean() > 0.99


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_every_field_equals_that_of_transformers(
    teacher: Path, tmp_path: Path, tensor_parallel: int
) -> None:
    ours = tmp_path / "vllm"
    ours.mkdir()
    config = config_for(teacher, ours, RECORDS, **options(tensor_parallel=tensor_parallel))
    run(words_for(config))
    store = TeacherStore.open(config.store)
    assert np.diff(store.read(range(len(store))).token_offsets).max() == MODEL_LENGTH
    capture = store.spec.identity["capture"]
    expected = {"engine": "vllm", "values": "logits", "tensor_parallel": tensor_parallel}
    assert {name: capture[name] for name in expected} == expected
    plain = tmp_path / "plain"
    plain.mkdir()
    check_equal(store, precompute(config_for(teacher, plain, RECORDS)))


def test_draws_are_those_of_transformers(teacher: Path, tmp_path: Path) -> None:
    stores = []
    for name, changes in (("vllm", options()), ("plain", {})):
        folder = tmp_path / name
        folder.mkdir()
        config = config_for(teacher, folder, RECORDS, top_k=None, sample=16, **changes)
        run(words_for(config))
        stores.append(TeacherStore.open(config.store))
    ours, plain = (store.read(range(len(store))) for store in stores)
    assert (ours.column("sampled_ids") == plain.column("sampled_ids")).mean() > 0.99


def test_a_probe_measures_the_engine(teacher: Path, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path, RECORDS, **options())
    found = json.loads(run(["plan", *words_for(config)[1:], "--probe", "--json"]))["forecast"]
    assert found["num_rows"] > 0
    assert found["memory_of"] in ("process", "gpu")
    assert found["memory_bytes"] > 1 << 20


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_packed_weights_are_those_of_the_unpacked_model(tmp_path: Path, method: str) -> None:
    whole = save_tiny(tmp_path / "whole", hidden=128, tie=False)
    plain = save_packed(whole, tmp_path / "packed", method)
    config = config_for(tmp_path / "packed", tmp_path, RECORDS, **options(dtype="bfloat16"))
    run(words_for(config))
    store = TeacherStore.open(config.store)
    identity = store.spec.identity["capture"]
    assert identity["quantization"] == {"method": method, "bits": 4}
    ours = store.read(range(len(store)))
    labels = []
    for name, folder in (("plain", plain), ("unquantised", whole)):
        place = tmp_path / f"of-{name}"
        place.mkdir()
        rows = precompute(config_for(folder, place, RECORDS, dtype="bfloat16")).read(
            range(len(store))
        )
        labels.append(rows.column("label_logit") - rows.column("logsumexp"))
    found = ours.column("label_logit") - ours.column("logsumexp")
    apart = [np.abs(found - values).max() for values in labels]
    assert apart[0] < 0.05 < apart[1]


def predicted(folder: Path, teacher: Path, backend: str, *more: str) -> Any:
    """Columns of a predictions file, without times."""
    folder.mkdir()
    data = write_jsonl(folder / "data.jsonl", ragged_records(40, seed=5))
    out = folder / "out.parquet"
    words = ["predict", "--model", str(teacher), "--data", str(data), "--out", str(out)]
    words += ["--max-new-tokens", "24", "--task-metric", "chrf", "--stop", "e"]
    run([*words, "--backend", backend, *more])
    return read_predictions(str(out)).columns.drop_columns(["seconds"])


@pytest.mark.parametrize("tensor_parallel", ["1", "2"])
def test_answers_are_those_of_transformers(
    teacher: Path, tmp_path: Path, tensor_parallel: str
) -> None:
    more = ("--tensor-parallel", tensor_parallel)
    ours = predicted(tmp_path / "vllm", teacher, "vllm", *more)
    plain = predicted(tmp_path / "plain", teacher, "transformers")
    rounded = ["token_logprobs", "token_margins", "token_entropies"]
    assert ours.drop_columns(rounded).equals(plain.drop_columns(rounded))
    for name in rounded:
        for own, theirs in zip(ours[name].to_pylist(), plain[name].to_pylist(), strict=True):
            np.testing.assert_allclose(own, theirs, rtol=0, atol=2e-4)


def test_drawn_answers_are_those_of_transformers(teacher: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", ragged_records(40, seed=5))
    texts = []
    for backend in ("vllm", "transformers"):
        out = tmp_path / f"{backend}.jsonl"
        words = ["precompute", "--teacher", str(teacher), "--data", str(data)]
        words += ["--sample-responses", str(out), "--max-new-tokens", "24"]
        run([*words, "--temperature", "1.3", "--seed", "7", "--backend", backend])
        texts.append(out.read_text())
    assert texts[0] == texts[1]


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    while process.poll() is None:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(process.communicate()[1][-3000:])


def descendants(parent: int) -> dict[int, str]:
    """Names of the processes below one, by their ids."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                name = (entry / "cmdline").read_text()
            except OSError:
                continue
            number = int(entry.name)
            parents[number] = int(stat.rpartition(")")[2].split()[1])
            names[number] = name
    found, level = {}, {parent}
    while level:
        level = {child for child, above in parents.items() if above in level}
        found.update({child: names[child] for child in level})
    return found


def commits(config: Any) -> int:
    return len(list(Path(config.store, "commits").glob("[0-9]*.json")))


@pytest.mark.parametrize("victim", ["EngineCore", "Worker"])
def test_a_killed_engine_costs_a_shard_and_starts_anew(
    teacher: Path, tmp_path: Path, victim: str
) -> None:
    config = config_for(teacher, tmp_path, ragged_records(600, seed=4), **options())
    process = start(words_for(config))
    wait_for(lambda: commits(config) >= 2, process)
    found = [n for n, name in descendants(process.pid).items() if victim in name]
    os.kill(found[0], signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == 1, error[-3000:]
    assert "the engine failed" in error
    assert "retries only those" in error
    store = TeacherStore.open(config.store, allow_unsealed=True)
    assert store.num_committed_shards() == store.spec.num_shards - 1
    run(words_for(config))
    assert verify_store(config.store, full=True).ok


def test_a_killed_capture_leaves_no_engine_and_resumes(teacher: Path, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path, ragged_records(600, seed=4), **options())
    process = start(words_for(config))
    wait_for(lambda: commits(config) >= 2, process)
    below = descendants(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{n}/stat").exists() for n in below):
        assert time.monotonic() < deadline, below
        time.sleep(0.1)
    run(words_for(config))
    assert verify_store(config.store, full=True).ok


def test_another_checkpoint_is_refused(
    teacher: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = config_for(teacher, tmp_path, RECORDS, **options())
    run(["plan", *words_for(config)[1:]])
    other = save_tiny(tmp_path_factory.mktemp("other") / "tiny", hidden=128, seed=1)
    words = words_for(config)
    words[words.index("--teacher") + 1] = str(other)
    process = start(words)
    _, error = process.communicate()
    assert process.returncode == 3
    assert "teacher." in error
