"""`hf://datasets/USER/NAME[/FOLDER]` through huggingface_hub.

`write` uploads content at once; `flush` makes it visible in one commit, and the seal gets a later
commit of its own. The Hub keeps large files by their sha256 and checks it on arrival.
A missing repository is created private, because a store reveals its corpus.
"""

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from caskd.store.errors import StoreError, UsageError
from caskd.store.io import descriptors, is_limit_reached
from caskd.store.storage.base import TransientError, read_sized

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_URL = re.compile(r"datasets/([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)((?:/[\w.-]+)*)")
_FILES_PER_COMMIT = 5000
_RETRIED_STATUSES = (408, 409, 412, 429)
_DATASET = "dataset"


class HubStorage:
    """A folder of a dataset repository at revision main."""

    def __init__(self, api: "HfApi", repo: str, folder: str) -> None:
        self._api, self._repo, self._folder = api, repo, folder
        self.url = f"hf://datasets/{repo}" + (f"/{folder}" if folder else "")
        self._written: list[CommitOperationAdd] = []
        self._lock = threading.Lock()
        self._exists = False

    @classmethod
    def open(cls, path: str) -> "HubStorage":
        """The storage `hf://path`; token and endpoint come from the environment.

        Raises:
            UsageError: `path` is not `datasets/USER/NAME[/FOLDER]`.
        """
        match = _URL.fullmatch(path)
        if match is None:
            raise UsageError(
                f"hf://{path}: not a dataset; expected hf://datasets/USER/NAME or a folder in it; "
                "pass such a URL"
            )
        from huggingface_hub import HfApi, logging
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()
        logging.set_verbosity_error()  # its warnings print whole URLs, signed ones too
        # The library reads HF_ENDPOINT once at import; reading it here follows later changes.
        return cls(HfApi(endpoint=os.environ.get("HF_ENDPOINT")), match[1], match[2].strip("/"))

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name

    def _info(self, name: str) -> Any:
        """Metadata of a file; None if it does not exist."""
        try:
            with translate_errors(f"{self.url}/{name}"):
                found = self._api.get_paths_info(self._repo, [self._path(name)], repo_type=_DATASET)
        except FileNotFoundError:
            return None
        return next((item for item in found if hasattr(item, "blob_id")), None)

    def size(self, name: str) -> int | None:
        """Size of a file in bytes."""
        info = self._info(name)
        return None if info is None else int(info.size)

    def sha256(self, name: str) -> str | None:
        """Digest that the Hub checked on arrival; None for a small file, which is kept in git."""
        info = self._info(name)
        return None if info is None or info.lfs is None else str(info.lfs.sha256)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file."""
        if start == stop:
            return b""
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        url = hf_hub_url(
            self._repo, self._path(name), repo_type=_DATASET, endpoint=self._api.endpoint
        )
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
        with translate_errors(f"{self.url}/{name}"):
            response = get_session().get(url, headers=headers, follow_redirects=True, timeout=120)
            hf_raise_for_status(response)
        # Some caches respond to a range of a small file with the whole file (status 200).
        data = response.content[start:stop] if response.status_code == 200 else response.content
        if len(data) != stop - start:
            raise TransientError(f"got {len(data):,} of {stop - start:,} bytes")
        return bytes(data)

    def read_small(self, name: str, limit: int) -> bytes | None:
        """A whole file."""
        return read_sized(self, name, limit)

    def write(self, name: str, data: bytes) -> None:
        """Upload the content; `flush` commits it."""
        from huggingface_hub import CommitOperationAdd

        self._create_repository()
        operation = CommitOperationAdd(self._path(name), data)
        with translate_errors(f"{self.url}/{name}"):
            self._api.preupload_lfs_files(self._repo, [operation], repo_type=_DATASET)
        with self._lock:
            self._written.append(operation)

    def create(self, name: str, data: bytes) -> bool:
        """Commit this file alone, with the revision that lacks it as the required parent."""
        self.flush()
        self._create_repository()
        with translate_errors(f"{self.url}/{name}"):
            head = self._api.repo_info(self._repo, repo_type=_DATASET).sha
        if self._info(name) is not None:
            return False
        from huggingface_hub import CommitOperationAdd

        self._commit([CommitOperationAdd(self._path(name), data)], name, head)
        return True

    def flush(self) -> None:
        """Commit all uploads."""
        with self._lock:
            while self._written:
                part = self._written[:_FILES_PER_COMMIT]
                self._commit(part, f"{len(part)} files")
                del self._written[: len(part)]

    def _commit(
        self, operations: "list[CommitOperationAdd]", what: str, parent: str | None = None
    ) -> None:
        with translate_errors(self.url), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a card without a YAML header
            self._api.create_commit(
                self._repo,
                operations,
                commit_message=f"caskd store push: {what}",
                repo_type=_DATASET,
                parent_commit=parent,
            )

    def _create_repository(self) -> None:
        with self._lock:
            if not self._exists:
                with translate_errors(self.url):
                    self._api.create_repo(
                        self._repo, repo_type=_DATASET, private=True, exist_ok=True
                    )
                self._exists = True

    def children(self) -> list[str]:
        """Names of files and folders directly inside."""
        try:
            with translate_errors(self.url):
                folder = self._folder or None
                tree = list(self._api.list_repo_tree(self._repo, folder, repo_type=_DATASET))
        except FileNotFoundError:
            return []
        names = ((item.path.rpartition("/")[2], hasattr(item, "blob_id")) for item in tree)
        return sorted(name if is_file else f"{name}/" for name, is_file in names)

    def inside(self, name: str) -> "HubStorage":
        """The storage of a subfolder."""
        return HubStorage(self._api, self._repo, self._path(name))


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours without quoting them; absent: FileNotFoundError."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        EntryNotFoundError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except OfflineModeIsEnabled:
        raise StoreError(
            f"{where}: HF_HUB_OFFLINE is set; unset it and run the same command again"
        ) from None
    except (EntryNotFoundError, RepositoryNotFoundError):
        raise FileNotFoundError(where) from None
    except HfHubHTTPError as error:
        raise _error(error.response.status_code, where) from None
    except (FileNotFoundError, StoreError, TransientError):
        raise
    except ValueError:
        raise StoreError(
            f"{where}: the Hub rejects this repository name or card; check both"
        ) from None
    except (OSError, RuntimeError, HTTPError) as error:
        if is_limit_reached(error):
            raise TransientError(
                f"no connection, too many open files: {descriptors.advice()}"
            ) from None
        raise TransientError("request failed (no connection)") from None


def _error(status: int, where: str) -> Exception:
    if status >= 500 or status in _RETRIED_STATUSES:
        return TransientError(f"request failed ({status})")
    return StoreError(
        f"{where}: refused ({status}); run hf auth login or set HF_TOKEN to a token with this "
        "permission, then run the same command again; it resumes where it stopped"
    )
