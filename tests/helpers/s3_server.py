"""A real S3 server (moto) on loopback, and a proxy before it that breaks things on schedule."""

import asyncio
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

FAULTS = ("503", "reset", "drop", "cut", "cut request", "delay", "flip", "twice")
BUCKET = "team"
SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a server with one empty bucket."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
    try:
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(request).close()
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the S3 server did not start")
        yield port
    finally:
        server.kill()
        server.wait()


def environment(port: int, **more: str) -> dict[str, str]:
    """Environment variables that select a server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        **more,
    }


class FaultProxy:
    """An HTTP proxy in a thread; `plan` decides the fault of each request.

    `plan(number, head)` returns one of FAULTS or None, for request `number` (from 0) whose request
    line and headers are `head`.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port, self.port = server_port, 0
        self.plan: Callable[[int, bytes], str | None] = lambda number, head: None
        self.rng = random.Random(0)
        self.latency = 0.0
        self.num_requests = 0
        self.hit: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def schedule(self, seed: int, probability: float) -> None:
        """Break requests at random, the same way for the same seed and order of requests."""
        self.rng, self.num_requests = random.Random(seed), 0

        def plan(number: int, head: bytes) -> str | None:
            return self.rng.choice(FAULTS) if self.rng.random() < probability else None

        self.plan = plan

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(_content_length(head))
            number, self.num_requests = self.num_requests, self.num_requests + 1
            fault = self.plan(number, head)
            if fault is not None:
                self.hit.add(fault)
            await asyncio.sleep(self.latency)
            await self._answer(fault, head, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(
        self, fault: str | None, head: bytes, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if fault == "reset":
            return _reset(writer)
        if fault == "503":
            writer.write(
                b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return None
        if fault == "delay":
            await asyncio.sleep(0.02)
        if fault == "flip" and b"/data.zarr/" in head and body:
            body = _flipped(body, self.rng)
        if fault == "cut request" and body:
            await self._forward(head, body[: self.rng.randrange(len(body))], hang_up=True)
            return _reset(writer)
        answer = await self._forward(head, body)
        if fault == "twice":
            answer = await self._forward(head, body)
        if fault == "drop":
            return _reset(writer)
        if fault == "flip" and head.startswith(b"GET"):
            top, _, rest = answer.partition(b"\r\n\r\n")
            answer = top + b"\r\n\r\n" + (_flipped(rest, self.rng) if rest else rest)
        if fault == "cut":
            writer.write(answer[: self.rng.randrange(len(answer))])
            return None
        writer.write(answer)
        return None

    async def _forward(self, head: bytes, body: bytes, *, hang_up: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        lines = [
            line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")
        ]
        writer.write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]) + body)
        await writer.drain()
        answer = b"" if hang_up else await reader.read()
        writer.close()
        # Without this the client would keep the connection for its next request.
        line, _, rest = answer.partition(b"\r\n")
        return line + b"\r\nConnection: close\r\n" + rest


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _flipped(data: bytes, rng: random.Random) -> bytes:
    index = rng.randrange(len(data))
    return data[:index] + bytes([data[index] ^ (1 << rng.randrange(8))]) + data[index + 1 :]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
