"""The part of the Hub's HTTP API that pushing and pulling uses, imitated on loopback.

Endpoints and answers have the shape that huggingface_hub expects: create, info, tree, paths-info,
preupload, LFS batch and upload, commit (with parentCommit), resolve with ranges.
"""

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_CANARYcanaryCANARYcanary0000"


class Hub(ThreadingHTTPServer):
    """One server; repositories are folders of files by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[tuple[str, list[str]]] = []  # message, paths
        self.objects: dict[str, bytes] = {}  # large files by sha256
        self.uploads = 0
        self.fail_next: list[int] = []  # statuses of the next requests
        self.lose_next_commit = False  # do it, then answer 503
        self.content_host: Hub | None = None  # serves file contents in place of this server
        self.tokens: list[str | None] = []  # Authorization of each request for a file's content
        self.lock = threading.Lock()

    def revision(self) -> str:
        return f"{len(self.commits):040x}"


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            if self.server.fail_next:
                # A talkative server: it repeats what it was sent.
                status = self.server.fail_next.pop(0)
                return self._answer(status, str(dict(self.headers)).encode())
            for pattern, handler in _ROUTES:
                match = re.fullmatch(pattern, f"{method} {self.path}")
                if match:
                    return handler(
                        self, body, *(urllib.parse.unquote(part or "") for part in match.groups())
                    )
        return self._answer(404, f"no route {method} {self.path}".encode())

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def create(self, body: bytes) -> None:
        value = json.loads(body)
        name = f"{value['organization']}/{value['name']}"
        assert value["type"] == "dataset"
        url = f"{self.server.url}/datasets/{name}"
        if name in self.server.repositories:
            return self._json({"error": "You already created this", "url": url}, 409)
        self.server.repositories[name] = {}
        if value.get("visibility") == "private":
            self.server.private.add(name)
        return self._json({"url": url})

    def validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})

    def _files(self, name: str) -> dict[str, bytes] | None:
        found = self.server.repositories.get(name)
        if found is None:
            self._answer(404, b"", X_Error_Code="RepoNotFound")
        return found

    def info(self, body: bytes, name: str) -> None:
        if self._files(name) is not None:
            self._json({"id": name, "sha": self.server.revision()})

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        entry = {"type": "file", "path": path, "size": len(data), "oid": digest[:40]}
        if _is_large(path):
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return entry

    def paths_info(self, body: bytes, name: str) -> None:
        files = self._files(name)
        if files is not None:
            paths = urllib.parse.parse_qs(body.decode())["paths"]
            self._json([self._entry(path, files[path]) for path in paths if path in files])

    def tree(self, body: bytes, name: str, folder: str) -> None:
        files = self._files(name)
        if files is None:
            return None
        start = f"{folder}/" if folder else ""
        inside = {p[len(start) :].partition("/")[0] for p in files if p.startswith(start)}
        if folder and not inside:
            return self._answer(404, b"", X_Error_Code="EntryNotFound")
        entries = [
            self._entry(start + part, files[start + part])
            if start + part in files
            else {"type": "directory", "path": start + part, "oid": "0" * 40}
            for part in sorted(inside)
        ]
        return self._json(entries)

    def preupload(self, body: bytes, name: str) -> None:
        files = self._files(name)
        if files is not None:
            asked = [entry["path"] for entry in json.loads(body)["files"]]
            modes = [
                {
                    "path": path, "shouldIgnore": False,
                    "uploadMode": "lfs" if _is_large(path) else "regular",
                }
                for path in asked
            ]  # fmt: skip
            self._json({"files": modes})

    def batch(self, body: bytes, name: str) -> None:
        answers = []
        for item in json.loads(body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.server.objects:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, b"digest differs")
        self.server.objects[oid] = body
        self.server.uploads += 1
        return self._answer(200, b"")

    def commit(self, body: bytes, name: str) -> None:
        files = self._files(name)
        if files is None:
            return None
        header, *changes = [json.loads(line) for line in body.splitlines()]
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != self.server.revision():
            return self._json({"error": "A commit has happened since"}, 412)
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.objects[value["oid"]]
        paths = [change["value"]["path"] for change in changes]
        self.server.commits.append((header["value"]["summary"], paths))
        if self.server.lose_next_commit:
            self.server.lose_next_commit = False
            return self._answer(503, b"")
        oid = self.server.revision()
        url = f"{self.server.url}/datasets/{name}/commit/{oid}"
        return self._json({"commitUrl": url, "commitOid": oid, "success": True})

    def resolve(self, body: bytes, name: str, path: str) -> None:
        files = self._files(name)
        if files is None:
            return None
        if path not in files:
            return self._answer(404, b"", X_Error_Code="EntryNotFound")
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.content_host is not None:
            return self._answer(302, b"", Location=f"{self.server.content_host.url}{self.path}")
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()  # type: ignore[union-attr]
        return self._answer(206, files[path][int(first) : int(last) + 1])


def _is_large(path: str) -> bool:
    return "data.zarr/" in path and not path.endswith(".json")


_NAME = r"([^/]+/[^/]+)"
_ROUTES = (
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/datasets/{_NAME}", _Handler.info),
    (rf"POST /api/datasets/{_NAME}/paths-info/main", _Handler.paths_info),
    (rf"GET /api/datasets/{_NAME}/tree/main(?:/([^?]*))?(?:\?.*)?", _Handler.tree),
    (rf"POST /api/datasets/{_NAME}/preupload/main", _Handler.preupload),
    (rf"POST /datasets/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/([0-9a-f]{64})", _Handler.upload),
    (rf"POST /api/datasets/{_NAME}/commit/main", _Handler.commit),
    (rf"GET /datasets/{_NAME}/resolve/main/(.*)", _Handler.resolve),
)
