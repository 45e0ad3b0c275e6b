"""No secret is printed or written: from the environment, a URL or a server's response."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.s3_server import BUCKET, s3_server
from helpers.stores import make_store

from caskd.cli.main import main

CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0001",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+0002canary",
    "AWS_SESSION_TOKEN": "canarySessionToken0003",
    "HF_TOKEN": "hf_canaryCANARYcanaryCANARY0004",
    "GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "canary0005"}',
    "WANDB_API_KEY": "canarywandb0006",
}
SIGNED = [
    "s3://AKIACANARYCANARY0011:canarysecret0012@{bucket}/x",
    "s3://{bucket}/x?X-Amz-Signature=canarysignature0013",
    "https://user:canarypassword0014@host/x?sig=canarysig0015#canaryfragment0016",
    "gs://canaryuser0017@{bucket}/x",
    "hf://datasets/canarytoken0018@team/cask?token=canarytoken0019",
]


def leaks(data: bytes) -> list[bytes]:
    """Canaries in some bytes: each contains the word 'canary' in some case."""
    lowered = data.lower()
    return [lowered[i : i + 24] for i in range(len(lowered)) if lowered.startswith(b"canary", i)]


def run(words: list[str], endpoint: str, cache: Path) -> tuple[int, bytes]:
    """Exit code and output of a command with all canaries in its environment."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-m", "caskd.cli", "store", *words],
        env={
            **os.environ, **CANARIES, "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1",
            "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "CASKD_CACHE": str(cache),
            "RUST_LOG": "debug", "RUST_BACKTRACE": "1",
        },
        capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


class _Parrot(BaseHTTPRequestHandler):
    """Refuses every request and echoes it, as S3 does for a wrong signature."""

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = "".join(f"<{k}>{v}</{k}>" for k, v in self.headers.items())
        body = f"<Error><Code>SignatureDoesNotMatch</Code>{self.path}{said}</Error>".encode()
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _refuse

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def parrot() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Parrot)
    server.status = 403  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_canaries_are_found() -> None:
    assert leaks(b"x" + CANARIES["AWS_ACCESS_KEY_ID"].encode())
    for url in SIGNED:
        assert leaks(url.encode())
    for value in CANARIES.values():
        assert leaks(value.encode())


@pytest.mark.slow
def test_nothing_leaks_on_success(tmp_path: Path) -> None:
    make_store(tmp_path / "store", num=4, shard_rows=16)
    with s3_server() as port:
        endpoint, cache, url = f"http://127.0.0.1:{port}", tmp_path / "cache", f"s3://{BUCKET}/x"
        for words in (
            ["push", str(tmp_path / "store"), url],
            ["ls", url],
            ["card", url, "--write"],
            ["info", url],
            ["pull", url, str(tmp_path / "copy")],
            ["card", str(tmp_path / "copy"), "--write"],
        ):
            code, printed = run(words, endpoint, cache)
            assert code == 0, printed
            assert not leaks(printed)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 100
    for path in written:
        assert not leaks(path.read_bytes()), path
        assert not leaks(str(path).encode())


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize("url", ["s3://{bucket}/x", "hf://datasets/team/cask"])
def test_nothing_leaks_when_a_server_echoes_requests(
    status: int, url: str, parrot: ThreadingHTTPServer, tmp_path: Path
) -> None:
    make_store(tmp_path / "store", num=4, shard_rows=16)
    parrot.status = status  # type: ignore[attr-defined]
    endpoint = f"http://127.0.0.1:{parrot.server_address[1]}"
    target = url.format(bucket=BUCKET)
    for words in (["push", str(tmp_path / "store"), target], ["pull", target, str(tmp_path / "c")]):
        code, printed = run(words, endpoint, tmp_path / "cache")
        assert code != 0
        assert printed.startswith(b"caskd: ")
        assert printed.count(b"\n") == 1, printed
        assert str(status).encode() in printed
        assert not leaks(printed)


@pytest.mark.parametrize("url", SIGNED)
def test_a_url_with_a_secret_is_refused_without_it(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "store", num=4)
    full = url.format(bucket=BUCKET)
    for words in (
        ["push", str(tmp_path / "store"), full],
        ["pull", full, str(tmp_path / "copy")],
        ["ls", full], ["card", full], ["info", full], ["show", full], ["verify", full],
        ["push", full, "elsewhere"], ["pull", "elsewhere", full],
    ):  # fmt: skip
        assert main(["store", *words]) == 2
        printed = capsys.readouterr()
        assert not leaks((printed.out + printed.err).encode()), words
        assert printed.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
