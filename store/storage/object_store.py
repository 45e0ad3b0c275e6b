"""`s3://` and `gs://` through obstore; no other module imports it.

obstore's own retries are off: every backend uses `base.retry`. Its messages are never shown,
because a server's response may repeat access keys and signatures.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from caskd.store.errors import CorruptError, StoreError, UsageError
from caskd.store.imports import require
from caskd.store.io import descriptors, escape_control
from caskd.store.storage.base import TransientError, clean_url

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_PORT = r"(:([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5]))?"
_ENDPOINT = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])" + _PORT + r"(/[\w./-]*)?", re.ASCII)
_BUCKET = re.compile(r"[\w.-]{1,222}", re.ASCII)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,40})</Code>")
_NO_DESCRIPTOR = "TooManyOpenFiles"
_RETRIED_STATUSES = (408, 409, 429)
_PUT_PARTS_FROM = 64 << 20


class ObjectStorage:
    """A prefix of a bucket; an object is complete as soon as its PUT is done."""

    def __init__(self, store: "S3Store | GCSStore", url: str, prefix: str) -> None:
        self._store, self.url, self._prefix = store, url, prefix

    @classmethod
    def open(cls, scheme: str, bucket: str, prefix: str) -> "ObjectStorage":
        """The storage `scheme://bucket/prefix`; credentials and endpoint come from the environment.

        Raises:
            UsageError: no bucket in the URL, a name or an endpoint that no request can have, or
                obstore is not installed.
        """
        url = f"{scheme}://{bucket}/{prefix}".rstrip("/")
        _check_names(url, scheme, bucket, prefix)
        _check_endpoints()
        stores = require("obstore.store", extra="s3", needed_by=f"{scheme}://")
        options: dict[str, Any] = {
            "client_options": {
                "allow_http": _plain_http(),
                "connect_timeout": "10s",
                "timeout": "120s",
            },
            "retry_config": {"max_retries": 0},
        }
        backend = stores.S3Store if scheme == "s3" else stores.GCSStore
        with translate_errors(url):
            return cls(backend(bucket, **options), url, prefix)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def size(self, name: str) -> int | None:
        """Size of an object in bytes."""
        import obstore

        with translate_errors(f"{self.url}/{name}"):
            try:
                return int(obstore.head(self._store, self._key(name))["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of an object; a short response raises TransientError."""
        if start == stop:
            return b""
        import obstore

        with translate_errors(f"{self.url}/{name}"):
            data = bytes(obstore.get_range(self._store, self._key(name), start=start, end=stop))
        if len(data) != stop - start:
            raise TransientError(f"got {len(data):,} of {stop - start:,} bytes")
        return data

    def read_small(self, name: str, limit: int) -> bytes | None:
        """A whole object; its size is checked before its content is read."""
        import obstore

        with translate_errors(f"{self.url}/{name}"):
            try:
                response = obstore.get(self._store, self._key(name))
                size = int(response.meta["size"])
                if size > limit:
                    raise CorruptError(
                        f"{self.url}/{name}: {size:,} bytes; expected at most {limit:,}"
                    )
                data = bytes(response.bytes())
            except FileNotFoundError:
                return None
        if len(data) != size:
            raise TransientError(f"got {len(data):,} of {size:,} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """PUT an object; a large one as a multipart upload, complete once all parts arrived."""
        import obstore

        with translate_errors(f"{self.url}/{name}"):
            obstore.put(
                self._store, self._key(name), data, use_multipart=len(data) >= _PUT_PARTS_FROM
            )

    def create(self, name: str, data: bytes) -> bool:
        """PUT with If-None-Match: *."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with translate_errors(f"{self.url}/{name}"):
            try:
                obstore.put(self._store, self._key(name), data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def sha256(self, name: str) -> str | None:
        """None: an ETag is not a sha256."""
        return None

    def flush(self) -> None:
        """Nothing to do: every PUT is visible at once."""

    def children(self) -> list[str]:
        """Names of objects and prefixes directly below this one."""
        import obstore

        with translate_errors(self.url):
            found = obstore.list_with_delimiter(self._store, self._prefix or None)
        folders = [f"{path.rpartition('/')[2]}/" for path in found["common_prefixes"]]
        return sorted(folders + [item["path"].rpartition("/")[2] for item in found["objects"]])

    def inside(self, name: str) -> "ObjectStorage":
        """The storage of a longer prefix of the same bucket."""
        return ObjectStorage(self._store, f"{self.url}/{name}", self._key(name))


def _plain_http() -> bool:
    """Whether the environment sets an endpoint without TLS (a server in the local network)."""
    variables = (*_ENDPOINTS, "GOOGLE_SERVICE_ACCOUNT_KEY")
    return any("http://" in os.environ.get(name, "") for name in variables)


def _check_names(url: str, scheme: str, bucket: str, prefix: str) -> None:
    shown = escape_control(url)
    if not bucket:
        raise UsageError(
            f"{shown}: no bucket in the URL; expected {scheme}://BUCKET/PATH; add the bucket"
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{shown}: {escape_control(bucket)!r} is no name of a bucket; expected letters, "
            f"digits, '.', '-' and '_' in {scheme}://BUCKET/PATH; correct the URL"
        )
    wrong = [part for part in prefix.split("/") if part in ("", ".", "..")] if prefix else []
    if wrong or not prefix.isprintable():
        raise UsageError(
            f"{shown}: its path has an empty name, '.', '..' or a control character; expected "
            f"{scheme}://BUCKET/PATH with one / between names; correct the URL"
        )


def _check_endpoints() -> None:
    for name in _ENDPOINTS:
        value = os.environ.get(name)
        if value is not None and not _ENDPOINT.fullmatch(value):
            raise UsageError(
                f"{name}={escape_control(clean_url(value))!r}: expected http://HOST:PORT or "
                f"https://HOST; set {name} to such a URL, or unset it"
            )


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Turn obstore's errors into ours; FileNotFoundError and AlreadyExistsError pass through."""
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        yield
    except AlreadyExistsError:
        raise
    except BaseError as error:
        raise _error(type(error).__name__, str(error), where) from None
    except BaseException as error:
        # A panic of the library below obstore is no Exception, and pyo3 exports no name for it.
        if type(error).__name__ != "PanicException":
            raise
        raise StoreError(
            f"{where}: obstore cannot make this request; expected a URL, endpoint and credentials "
            f"as in docs/sharing.md; check the URL and {', '.join(_ENDPOINTS)}"
        ) from None


def _error(kind: str, text: str, where: str) -> Exception:
    """TransientError if a retry may help, else StoreError; the message never quotes `text`."""
    status, code = _STATUS.search(text), _CODE.search(text)
    number = int(status[1]) if status else None
    summary = " ".join(str(part) for part in (number, code[1] if code else None) if part)
    if _NO_DESCRIPTOR in text:  # another request of this process may end and free one
        return TransientError(f"no connection, too many open files: {descriptors.advice()}")
    if kind == "GenericError" and (number is None or number >= 500 or number in _RETRIED_STATUSES):
        return TransientError(f"request failed ({summary or 'no connection'})")
    return StoreError(
        f"{where}: refused ({summary or kind}); check the credentials in the environment and the "
        "bucket's name, then run the same command again; it resumes where it stopped"
    )
