"""HTTP to a model server: kept connections, bounded retries, a token that stays with its host."""

import json
import os
import re
import select
import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from caskd.store.errors import CaskdError, UsageError, reason
from caskd.store.io import bytes_text, escape_control, parse_json, tell

TOKEN_VARIABLE = "CASKD_SERVER_TOKEN"
CONCURRENCY = 32
"""Requests that one server has at a time, unless told otherwise."""
ATTEMPTS = 7
SAID_AFTER = 4
"""Failed attempts, 3.5 s after the first, behind which a line says that a request still waits."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
CONNECT_SECONDS, READ_SECONDS = 10.0, 600.0
"""The second one until an answer begins, and again until it is complete."""
MOST_BYTES = 10**9
"""Of one answer: 128k rows of 64 log-probabilities are 0.6 GB of JSON."""
_AGAIN = frozenset({408, 425, 429, *range(500, 600)})
"""Status codes after which the same question may be asked again."""
_MOST_TEXT = 300
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")


class ServerError(CaskdError):
    """A server does not answer, or answers what it was not asked."""

    exit_code = 1


class RequestRefusedError(ServerError):
    """The server refused a request, and would refuse it again."""

    def __init__(self, message: str, status: int, text: str) -> None:
        super().__init__(message)
        self.status, self.text = status, text


def server_url(url: str) -> str:
    """All of a server's URL before `/v1`, with its scheme in lower case.

    Raises:
        UsageError: not an http URL, or it holds a user name, a password or a query.
    """
    if "@" in url or "?" in url or "#" in url:
        raise UsageError(
            f"--url {_without_secrets(url)}: holds a user name, a query or a fragment; expected "
            f"scheme, host, port and path alone; pass a token of access in {TOKEN_VARIABLE}"
        )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, or an open bracket
        usable = False
    if not usable or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise UsageError(
            f"--url {escape_control(url)}: not a URL of a server; expected http:// or https://, a "
            "host and a port below 65,536; pass all before /v1, such as http://localhost:8000"
        )
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _without_secrets(url: str) -> str:
    """A URL without what stands before a host, and without its query."""
    shown = re.sub(r"^([A-Za-z][A-Za-z+.-]*:/+)?.*@", r"\1", url, flags=re.DOTALL)
    return escape_control(re.split("[?#]", shown)[0])


def _token() -> str | None:
    """The token of access; None where the environment has none.

    Raises:
        UsageError: it cannot be sent in a header.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not all("!" <= character <= "~" for character in token):
        raise UsageError(
            f"{TOKEN_VARIABLE}: holds a space, a line break or a letter that is not ASCII; "
            "expected the token alone; set it again"
        )
    return token or None


class HttpServer:
    """One server that is asked in JSON. Its methods may run in many threads.

    Requests must be safe to repeat: a request is asked again after a lost connection, a timeout,
    an answer that is not JSON, and the status codes 408, 425, 429 and 5xx.

    Attributes:
        url: as `server_url` returns it.
        concurrency: requests that it may have at a time.
        interrupted: set after a failure, or when a connection is opened while none of the earlier
            ones is open: another process may answer now. Whoever checks that clears it.
    """

    def __init__(self, url: str, *, concurrency: int = CONCURRENCY) -> None:
        self.url, self.concurrency = server_url(url), concurrency
        self.interrupted = threading.Event()
        self._stopping = threading.Event()
        self._said = threading.Event()
        self._token = _token()
        self._connections: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._connected = False
        self._lock = threading.Lock()
        self._pool = urllib3.connection_from_url(
            self.url,
            maxsize=concurrency,
            block=True,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        )
        secure = self.url.startswith("https")
        self._pool.ConnectionCls = self._watched(HTTPSConnection if secure else HTTPConnection)

    def _watched(self, base: Any) -> Any:
        """A connection class that reports when it connects."""
        server = self

        class Watched(base):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                server._note_connection(self)

        Watched.__name__ = base.__name__  # errors name the class
        return Watched

    def _note_connection(self, connection: HTTPConnection) -> None:
        """Keep a connection that was just opened, and notice if it is the only one.

        Servers close connections that stay idle for some seconds (5 in vLLM). As long as another
        connection of before is open, the process behind it lives, and has the port.
        """
        with self._lock:
            others = [other for other in self._connections if other is not connection]
            if self._connected and not any(map(_is_open, others)):
                self.interrupted.set()
            self._connected = True
            self._connections.add(connection)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that the server answers to a POST of `body`, or to a GET without one.

        Raises:
            RequestRefusedError: a status code that the same request would get again.
            ServerError: no usable answer after several attempts.
        """
        for attempt in range(ATTEMPTS):
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
            try:
                status, data, retry_after = self._send(path, body)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                self._check_tls(error)
                problem = self._clean(f"{type(error).__name__}: {reason(error)}")
            else:
                if status == 200:
                    try:
                        found = parse_json(data, constants=True)
                        self._said.clear()
                        return found
                    except ValueError:
                        if data.lstrip().startswith(b"<"):
                            self._refuse_page(path)
                        problem = f"{len(data):,} bytes that are not whole JSON"
                elif status in _AGAIN:
                    problem = f"status {status}: {self._text(data)}"
                    wait = max(wait, min(retry_after, 2 * LONGEST_WAIT))
                else:
                    self._refuse(path, status, data)
            self.interrupted.set()
            if attempt + 1 == SAID_AFTER:
                self._say_waiting(path, problem)
            if attempt + 1 == ATTEMPTS or self._stopping.wait(wait):
                break
        raise ServerError(
            f"--url {self.url}: {path} failed {attempt + 1} times, the last with {problem}; "
            "expected an answer; check that the server runs, and its log, then run the same "
            "command again"
        )

    def _say_waiting(self, path: str, problem: str) -> None:
        """One line for all requests that wait for this server, until it answers again."""
        if not self._said.is_set():
            self._said.set()
            tell(
                f"--url {self.url}: {path} failed {SAID_AFTER} times, the last with {problem}; "
                f"asking again, {ATTEMPTS} times in all",
                file=sys.stderr,
            )

    def _send(self, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes, float]:
        """Send one request; its status, content and seconds of `Retry-After`."""
        headers = {"Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        answer = self._pool.request(
            "GET" if data is None else "POST",
            urlsplit(self.url).path + path,
            body=data,
            headers=headers,
            redirect=False,
            preload_content=False,
        )
        try:
            content = self._content(path, answer)
        except BaseException:
            answer.close()
            raise
        finally:
            answer.release_conn()
        after = answer.headers.get("Retry-After", "")
        return answer.status, content, float(after) if after.isdigit() else 0.0

    def _content(self, path: str, answer: Any) -> bytes:
        """All of an answer.

        Raises:
            TimeoutError: it goes on for too long.
            ServerError: it is too long.
        """
        end, parts, size = time.monotonic() + READ_SECONDS, [], 0
        while part := answer.read1(1 << 20):
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise ServerError(
                    f"--url {self.url}: {path} answers with more than {bytes_text(MOST_BYTES)}; "
                    "expected the log-probabilities of one prompt; check --url, or pass a smaller "
                    "--top-k or --max-length"
                )
            if time.monotonic() > end:
                raise TimeoutError(f"{size:,} bytes of an answer after {READ_SECONDS:g} s")
        return b"".join(parts)

    def _check_tls(self, error: Exception) -> None:
        """Raise for a certificate, or a protocol, that will be the same at the next attempt.

        Raises:
            ServerError: names what to set.
        """
        cause = error.args[0] if isinstance(error, urllib3.exceptions.SSLError) else None
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise ServerError(
                f"--url {self.url}: its certificate is not trusted ({cause.verify_message}); "
                "expected one of an authority that this machine knows, for this host; set "
                "SSL_CERT_FILE to the authority's certificate, or check --url"
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            raise ServerError(
                f"--url {self.url}: the server does not speak TLS ({cause.reason}); expected https "
                "at this port; pass the http:// URL, which sends a token unencrypted"
            )

    def _refuse(self, path: str, status: int, data: bytes) -> None:
        text = self._text(data)
        expected = "expected status 200; check --url and the server's version"
        if status in (401, 403):
            expected = f"expected a token that it accepts; set {TOKEN_VARIABLE}"
        elif status == 404:
            expected = "expected this path and model; run caskd doctor --url to see what it serves"
        elif 300 <= status < 400:
            expected = "expected no redirect, which a token must not follow; pass the final --url"
        raise RequestRefusedError(
            f"--url {self.url}: {path} answered status {status} ({text}); {expected}", status, text
        )

    def _refuse_page(self, path: str) -> None:
        raise RequestRefusedError(
            f"--url {self.url}: {path} answered with a page for browsers; expected JSON; check "
            "--url, and whether a login stands in front of the server",
            200,
            "",
        )

    def _text(self, data: bytes) -> str:
        """The beginning of an answer; the token is taken out before it could be cut in two."""
        return self._clean(" ".join(data.decode("utf-8", "replace").split()))[:_MOST_TEXT]

    def _clean(self, text: str) -> str:
        """A server's text for a message: one line without the token."""
        return escape_control(text.replace(self._token, "***") if self._token else text)

    def close(self) -> None:
        """End all connections, so that no thread goes on waiting for an answer."""
        self._stopping.set()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            if connection.sock is not None:
                try:
                    connection.sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # ended already
        self._pool.close()


def _is_open(connection: HTTPConnection) -> bool:
    """Whether the other end of a connection, which another thread may use, has not closed it."""
    if connection.sock is None:
        return False
    poll = select.poll()
    try:
        # Without the flag (outside of Linux), an answer that waits to be read looks like an end.
        poll.register(connection.sock, getattr(select, "POLLRDHUP", select.POLLIN))
        return not poll.poll(0)
    except (OSError, ValueError):  # closed meanwhile
        return False


def answered(ask: Callable[[], Any]) -> Any | None:
    """The answer of an endpoint that not every server has; None if this one has none."""
    try:
        return ask()
    except RequestRefusedError as refused:
        if refused.status in (401, 403) or 300 <= refused.status < 400:
            raise
        return None
