"""URLs, tokens, certificates and answers of every size: one line for each mistake, no secret."""

import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from caskd.models.engines import RequestRefusedError, ServerError, http_client, server_url
from caskd.models.engines.http_client import HttpServer, answered
from caskd.store.errors import UsageError

Reply = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def replying(reply: Reply, folder: Path | None = None) -> Iterator[str]:
    """The URL of a server that calls `reply`; with TLS where a folder holds a certificate."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scheme = "http"
    if folder is not None:
        scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def sends(body: bytes, status: int = 200, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each request that was sent; waits are short."""
    real, sent = HttpServer._send, []

    def send(self, path, body):  # type: ignore[no-untyped-def]
        sent.append(1)
        return real(self, path, body)

    monkeypatch.setattr(HttpServer, "_send", send)
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(http_client, "ATTEMPTS", 2)
    return sent


def refusal(url: str) -> str:
    """The one line with which a request to a server fails."""
    server = HttpServer(url)
    with pytest.raises(ServerError) as error:
        server.ask("/v1/models")
    server.close()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("HTTPS://H/v1", "https://H"),
        ("https://h/some/path/v1", "https://h/some/path"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_a_url_is_all_before_v1(url: str, expected: str) -> None:
    assert server_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://me:s3cret@host", "me:s3cret@host:80", "http:/me:s3cret@host",
        "http://me:s3/cret@host", "http://me:s3?cret@host", "http://me:1/s3cret@host",
        "http://host/v1?key=s3cret", "host?key=s3cret", "http://host#s3cret",
        "http://me:s3\ncret@host",
    ],
)  # fmt: skip
def test_a_secret_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UsageError, match="CASKD_SERVER_TOKEN") as error:
        server_url(url)
    assert "host" in str(error.value)
    assert "s3" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["", "host:80", "ftp://host", "http://", "http://host:abc", "http://host:99999",
     "http://host:0", "http://[::1", "http://host/a b", "http://host/\nv1", "http://host/\x1b[2J"],
)  # fmt: skip
def test_what_is_no_url_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(UsageError, match="http://localhost:8000") as error:
        HttpServer(url)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("token", ["s3 cret", "s3\ncret: x", "s3cr\u00e9t", "s3cret\x00"])
def test_a_token_that_no_header_holds_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setattr(http_client.os, "environ", {"CASKD_SERVER_TOKEN": token})
    with pytest.raises(UsageError, match="CASKD_SERVER_TOKEN") as error:
        HttpServer("http://host")
    assert "s3" not in str(error.value)


def test_a_token_from_a_file_may_end_in_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASKD_SERVER_TOKEN", "s3cret\r\n")
    seen: list[str | None] = []

    def reply(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        sends(b"{}")(handler)

    with replying(reply) as url:
        HttpServer(url).ask("/v1/models")
    assert seen == ["Bearer s3cret"]


def test_a_token_that_a_server_repeats_at_the_end_of_what_is_shown_stays_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CASKD_SERVER_TOKEN", "s3cret")
    text = b"x" * (http_client._MOST_TEXT - 3) + b"s3cret"
    with replying(sends(text, 403)) as url:
        assert "s3" not in refusal(url)


def test_a_redirect_is_refused_and_not_followed(asked: list[int]) -> None:
    reply = sends(b"", 301, Location="http://127.0.0.1:9/elsewhere")
    with replying(reply) as url:
        error = refusal(url)
        with pytest.raises(RequestRefusedError):
            answered(lambda: HttpServer(url).ask("/version"))
    assert "301" in error
    assert "final --url" in error
    assert len(asked) == 2


def test_a_page_for_browsers_is_refused_at_once(asked: list[int]) -> None:
    with replying(sends(b"<!doctype html><title>Sign in</title>")) as url:
        assert "login" in refusal(url)
        assert answered(lambda: HttpServer(url).ask("/version")) is None
    assert len(asked) == 2


def test_an_answer_that_is_too_long_is_not_read_to_its_end(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MOST_BYTES", 1 << 21)
    written = []

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(2 << 30))
        handler.end_headers()
        try:
            while True:
                written.append(handler.wfile.write(b"[" * (1 << 20)))
        except OSError:
            handler.close_connection = True

    with replying(reply) as url:
        error = refusal(url)
    assert "2.1 MB" in error
    assert "--top-k" in error
    assert len(asked) == 1
    assert len(written) < 64


def test_an_answer_that_drips_is_given_up(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "READ_SECONDS", 0.1)

    def reply(handler: BaseHTTPRequestHandler) -> None:
        sends(b"[", Content_Length="9999")(handler)
        try:
            while True:
                time.sleep(0.01)
                handler.wfile.write(b"1")
        except OSError:
            handler.close_connection = True

    with replying(reply) as url:
        assert "TimeoutError" in refusal(url)
    assert len(asked) == 2


def test_an_answer_in_chunks_is_read_whole_and_its_connection_kept(asked: list[int]) -> None:
    ports = set()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        ports.add(handler.client_address)
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n")

    with replying(reply) as url:
        server = HttpServer(url)
        assert [server.ask("/v1/models") for _ in range(3)] == [[1, 2]] * 3
        server.close()
    assert len(ports) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_of_an_unknown_authority_is_named_at_once(
    asked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*words, *files], check=True, capture_output=True)
    with replying(sends(b"{}"), tmp_path) as url:
        error = refusal(url)
        assert "not trusted" in error
        assert "SSL_CERT_FILE" in error
        assert len(asked) == 1
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert HttpServer(url).ask("/v1/models") == {}


def test_https_at_a_port_without_tls_is_named_at_once(asked: list[int]) -> None:
    with replying(sends(b"{}")) as url:
        assert "http://" in refusal(url.replace("http:", "https:"))
    assert len(asked) == 1
