"""`s3://` and `gs://` through obstore, which is fenced in here.

Its own retries are off: one policy (retries.py) serves every place. Its messages are never shown,
since a server may repeat access keys and signatures in what it answers.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from caskd.store.errors import CorruptError, StoreError, UsageError
from caskd.store.storage.base import TransientError

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,40})</Code>")
_TRY_AGAIN = (408, 409, 429)
_PUT_PARTS_FROM = 64 << 20


class ObjectStorage:
    """A prefix of a bucket; a file is there whole when its PUT is done."""

    def __init__(self, store: "S3Store | GCSStore", url: str, prefix: str) -> None:
        self._store, self.url, self._prefix = store, url, prefix

    @classmethod
    def open(cls, scheme: str, bucket: str, prefix: str) -> "ObjectStorage":
        """The place `scheme://bucket/prefix`, with credentials and endpoint from the environment.

        Raises:
            UsageError: no bucket, or obstore is not installed.
        """
        url = f"{scheme}://{bucket}/{prefix}".rstrip("/")
        if not bucket:
            raise UsageError(f"{url}: no bucket. Expected {scheme}://BUCKET/PATH.")
        try:
            from obstore.store import GCSStore, S3Store
        except ModuleNotFoundError:
            raise UsageError(
                f"{url}: needs obstore, which is not installed. Type: pip install 'caskd[s3]'"
            ) from None
        options: dict[str, Any] = {
            "client_options": {
                "allow_http": _plain_http(), "connect_timeout": "10s", "timeout": "120s",
            },
            "retry_config": {"max_retries": 0},
        }  # fmt: skip
        made = S3Store if scheme == "s3" else GCSStore
        with _told(url):
            return cls(made(bucket, **options), url, prefix)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def size(self, name: str) -> int | None:
        """Bytes of an object."""
        import obstore

        with _told(f"{self.url}/{name}"):
            try:
                return int(obstore.head(self._store, self._key(name))["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of an object; fewer are asked for again."""
        if start == stop:
            return b""
        import obstore

        with _told(f"{self.url}/{name}"):
            data = bytes(obstore.get_range(self._store, self._key(name), start=start, end=stop))
        if len(data) != stop - start:
            raise TransientError(f"got {len(data):,} of {stop - start:,} bytes")
        return data

    def read_small(self, name: str, limit: int) -> bytes | None:
        """A whole object, whose size is looked at before its content."""
        import obstore

        with _told(f"{self.url}/{name}"):
            try:
                answer = obstore.get(self._store, self._key(name))
                size = int(answer.meta["size"])
                if size > limit:
                    raise CorruptError(f"{self.url}/{name}: {size:,} bytes, more than it can have.")
                data = bytes(answer.bytes())
            except FileNotFoundError:
                return None
        if len(data) != size:
            raise TransientError(f"got {len(data):,} of {size:,} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """PUT an object; a very large one in parts, which make an object when all are there."""
        import obstore

        with _told(f"{self.url}/{name}"):
            obstore.put(
                self._store, self._key(name), data, use_multipart=len(data) >= _PUT_PARTS_FROM
            )

    def create(self, name: str, data: bytes) -> bool:
        """PUT with If-None-Match: *."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with _told(f"{self.url}/{name}"):
            try:
                obstore.put(self._store, self._key(name), data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def sha256(self, name: str) -> str | None:
        """Unknown without reading: an ETag is no sha256."""
        return None

    def flush(self) -> None:
        """Nothing is held back."""

    def children(self) -> list[str]:
        """Names directly under the prefix."""
        import obstore

        with _told(self.url):
            found = obstore.list_with_delimiter(self._store, self._prefix or None)
        folders = [f"{path.rpartition('/')[2]}/" for path in found["common_prefixes"]]
        return sorted(folders + [item["path"].rpartition("/")[2] for item in found["objects"]])

    def inside(self, name: str) -> "ObjectStorage":
        """A longer prefix of the same bucket."""
        return ObjectStorage(self._store, f"{self.url}/{name}", self._key(name))


def _plain_http() -> bool:
    """Whether the environment names an endpoint without TLS (a server in the same house)."""
    places = (
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    )
    return any("http://" in os.environ.get(name, "") for name in places)


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn obstore's errors into ours; FileNotFoundError and AlreadyExistsError pass."""
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        yield
    except AlreadyExistsError:
        raise
    except BaseError as error:
        raise _error(type(error).__name__, str(error), where) from None


def _error(kind: str, text: str, where: str) -> Exception:
    """TransientError where asking again may help, else StoreError; `text` itself is not shown."""
    status, code = _STATUS.search(text), _CODE.search(text)
    number = int(status[1]) if status else None
    said = " ".join(str(part) for part in (number, code[1] if code else None) if part)
    if kind == "GenericError" and (number is None or number >= 500 or number in _TRY_AGAIN):
        return TransientError(f"no good answer ({said or 'connection failed'})")
    return StoreError(
        f"{where}: refused ({said or kind}). Check the credentials in the environment and the "
        "bucket's name, then run the same command again: it goes on where it stopped."
    )
