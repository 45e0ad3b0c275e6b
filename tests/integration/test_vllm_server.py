"""`--backend server` against vLLM's own server: capture, kill, resume, doctor. Needs vllm."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import TOP_K, config_for, served_config, words_for
from helpers.tiny import ragged_records, save_tiny

from caskd.cli.main import main
from caskd.models.engines import http_client, vllm_version
from caskd.precompute import precompute
from caskd.store import TeacherStore, verify_store

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(vllm_version() is None, reason="vllm is not installed"),
]
RECORDS = ragged_records(300, seed=5)


@contextmanager
def server(model: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """vLLM's OpenAI-compatible server; killed at the end with all of its processes."""
    words = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager",
        "--host", "127.0.0.1", "--port", str(port), "--max-logprobs", str(TOP_K),
        "--max-model-len", "256", "--no-enable-prefix-caching",
    ]  # fmt: skip
    environ = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, env=environ, start_new_session=True, **quiet)
    try:
        while not answers(port):
            assert process.poll() is None, "the server did not start"
            time.sleep(0.5)
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_capture_outlives_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.01)
    teacher = save_tiny(tmp_path / "one" / "tiny", hidden=128)
    other = save_tiny(tmp_path / "two" / "tiny", hidden=128, seed=1)
    port = free_port()
    options = {"records": RECORDS, "shard_rows": 256}
    config = served_config(teacher, tmp_path / "run", f"http://127.0.0.1:{port}", **options)
    commits = Path(config.store, "commits")
    with server(teacher, port) as process:
        assert main(["doctor", "--url", config.url[0]]) in (0, 1)
        assert f"gives {TOP_K} or more log-probabilities" in capsys.readouterr().out
        killed = kill_after_commits(monkeypatch, commits, process)
        assert main(words_for(config)) == 1
        assert killed
        assert "run the same command again" in capsys.readouterr().err
        assert TeacherStore.open(config.store, allow_unsealed=True).num_committed_shards()
    with server(other, port):
        assert main(words_for(config)) == 3
        assert "teacher.fingerprint" in capsys.readouterr().err
    with server(teacher, port):
        assert main(words_for(config)) == 0
    check_equal(TeacherStore.open(config.store), plain_capture(teacher, tmp_path / "plain"))


def kill_after_commits(
    monkeypatch: pytest.MonkeyPatch, commits: Path, process: subprocess.Popen[bytes]
) -> list[int]:
    """Kill the server at the first request behind the first commit."""
    real, killed = http_client.HttpServer._send, []

    def send(self, path, body):  # type: ignore[no-untyped-def]
        if not killed and list(commits.glob("[0-9]*.json")):
            killed.append(process.pid)
            kill(process)
        return real(self, path, body)

    monkeypatch.setattr(http_client.HttpServer, "_send", send)
    return killed


def plain_capture(teacher: Path, folder: Path) -> TeacherStore:
    folder.mkdir()
    return precompute(config_for(teacher, folder, RECORDS, shard_rows=256))


def check_equal(ours: TeacherStore, plain: TeacherStore) -> None:
    """Labels within 2e-4 nats, tails within 5e-5."""
    assert verify_store(ours.root, full=True).ok
    a, b = ours.read(range(len(ours))), plain.read(range(len(plain)))
    np.testing.assert_array_equal(a.column("argmax"), b.column("argmax"))
    label = b.column("label_logit") - b.column("logsumexp")
    np.testing.assert_allclose(a.column("label_logit"), label, rtol=0, atol=2e-4)
    np.testing.assert_allclose(a.column("tail_mass"), b.column("tail_mass"), rtol=0, atol=5e-5)
