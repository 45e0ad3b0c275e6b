"""Opens the storage backend of a URL."""

from pathlib import Path
from urllib.parse import urlsplit

from caskd.store.errors import UsageError
from caskd.store.storage import request_helper
from caskd.store.storage.base import Storage, clean_url, is_remote
from caskd.store.storage.directory import DirectoryStorage


def open_storage(url: str | Path) -> Storage:
    """The storage of a URL; makes no request yet.

    Raises:
        UsageError: unknown scheme, credentials inside the URL, or a missing extra.
    """
    if not is_remote(url):
        return DirectoryStorage(Path(url))
    parts, safe_url = urlsplit(str(url)), clean_url(url)
    if "@" in parts.netloc + parts.path or parts.query or parts.fragment:
        raise UsageError(
            f"{safe_url}: the URL has a user, a query or a fragment; expected only a bucket and a "
            "path; set credentials in the environment (see docs/sharing.md)"
        )
    if parts.scheme in ("s3", "gs"):
        if request_helper.is_needed:
            return request_helper.HelperStorage(str(url).rstrip("/"))
        from caskd.store.storage.object_store import ObjectStorage

        path = parts.path.removeprefix("/").removesuffix("/")
        return ObjectStorage.open(parts.scheme, parts.netloc, path)
    if parts.scheme == "hf":
        from caskd.store.storage.hub import HubStorage

        return HubStorage.open(f"{parts.netloc}{parts.path}".strip("/"))
    raise UsageError(
        f"{safe_url}: unknown URL scheme; expected a directory, s3://BUCKET/PATH, "
        "gs://BUCKET/PATH or hf://datasets/USER/NAME; pass one of these"
    )
