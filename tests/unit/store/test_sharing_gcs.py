"""gs:// against the shape of Cloud Storage's XML API, through the real obstore."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import pytest
from helpers.stores import make_store, tree

from caskd.store import TeacherStore, pull_store, push_store
from caskd.store.errors import IdentityError
from caskd.store.share import list_stores

BUCKET = "team"
WHEN = "2026-01-01T00:00:00.000Z"


class _Bucket(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _answer(
        self, status: int, body: bytes = b"", size: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        self.wfile.write(body)

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")

    def do_PUT(self) -> None:
        objects, body = self.server.objects, self.rfile.read(int(self.headers["Content-Length"]))  # type: ignore[attr-defined]
        if self.headers.get("x-goog-if-generation-match") == "0" and self._key() in objects:
            return self._answer(412)
        objects[self._key()] = body
        return self._answer(200)

    def do_HEAD(self) -> None:
        data = self.server.objects.get(self._key())  # type: ignore[attr-defined]
        self._answer(404) if data is None else self._answer(200, size=len(data))

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            return self._list(query.get("prefix", [""])[0])
        data = self.server.objects.get(self._key())  # type: ignore[attr-defined]
        if data is None:
            return self._answer(404)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if asked is None:
            return self._answer(200, data)
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        return self._answer(
            206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}"
        )

    def _list(self, prefix: str) -> None:
        inside = [key for key in self.server.objects if key.startswith(prefix)]  # type: ignore[attr-defined]
        folders = {
            prefix + k[len(prefix) :].partition("/")[0] for k in inside if "/" in k[len(prefix) :]
        }
        parts = [f"<CommonPrefixes><Prefix>{escape(f)}/</Prefix></CommonPrefixes>" for f in folders]
        parts += [
            f"<Contents><Key>{escape(key)}</Key><Size>1</Size><LastModified>{WHEN}</LastModified>"
            '<ETag>"0"</ETag></Contents>'
            for key in inside
            if "/" not in key[len(prefix) :]
        ]
        self._answer(200, f"<ListBucketResult>{''.join(parts)}</ListBucketResult>".encode())

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Bucket)
    server.objects = {}  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    key = {
        "gcs_base_url": f"http://127.0.0.1:{server.server_address[1]}", "disable_oauth": True,
        "client_email": "", "private_key": "", "private_key_id": "",
    }  # fmt: skip
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
    monkeypatch.setenv("CASKD_CACHE", str(tmp_path / "cache"))
    yield server.objects  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def test_there_and_back_and_straight(objects: dict[str, bytes], tmp_path: Path) -> None:
    local = make_store(tmp_path / "store", num=6, shard_rows=16)
    url = f"gs://{BUCKET}/casks/toy"
    push_store(tmp_path / "store", url)
    assert {k.removeprefix("casks/toy/"): v for k, v in objects.items()} == tree(tmp_path / "store")
    assert [(e.url, e.state) for e in list_stores(f"gs://{BUCKET}/casks")] == [(url, "sealed")]
    pull_store(url, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(tmp_path / "store")
    remote = TeacherStore.open(url)
    np.testing.assert_array_equal(remote.read([5, 0]).topk_ids, local.read([5, 0]).topk_ids)
    make_store(tmp_path / "other", num=6, seed=1)
    with pytest.raises(IdentityError):
        push_store(tmp_path / "other", url)
