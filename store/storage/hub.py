"""`hf://datasets/USER/NAME[/FOLDER]` through huggingface_hub, which is fenced in here.

Contents go up as they are written; a `flush` makes them visible in one commit, and a seal is a
commit of its own, after them. The Hub stores large files by their sha256 and checks it.
A repository that does not exist is created private, since a store reveals its corpus.
"""

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from caskd.store.errors import StoreError, UsageError
from caskd.store.storage.base import TransientError, read_sized

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_URL = re.compile(r"datasets/([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)((?:/[\w.-]+)*)")
_FILES_PER_COMMIT = 5000
_TRY_AGAIN = (408, 409, 412, 429)
_DATASET = "dataset"


class HubStorage:
    """A folder of a dataset repository, at its main revision."""

    def __init__(self, api: "HfApi", repo: str, folder: str) -> None:
        self._api, self._repo, self._folder = api, repo, folder
        self.url = f"hf://datasets/{repo}" + (f"/{folder}" if folder else "")
        self._written: list[CommitOperationAdd] = []
        self._lock = threading.Lock()
        self._exists = False

    @classmethod
    def open(cls, path: str) -> "HubStorage":
        """The place `hf://path`, with the token and endpoint from the environment.

        Raises:
            UsageError: not `datasets/USER/NAME`.
        """
        match = _URL.fullmatch(path)
        if match is None:
            raise UsageError(
                f"hf://{path}: not a data set. Expected hf://datasets/USER/NAME or a folder in it."
            )
        from huggingface_hub import HfApi
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            disable_progress_bars,
            logging,
        )

        disable_progress_bars()
        logging.set_verbosity_error()  # its warnings show whole URLs, signed ones among them
        # Read here and not when the library was imported, so that the environment of now counts.
        return cls(HfApi(endpoint=os.environ.get("HF_ENDPOINT")), match[1], match[2].strip("/"))

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name

    def _info(self, name: str) -> Any:
        """What the Hub says of a file; None where there is none."""
        try:
            with _told(f"{self.url}/{name}"):
                found = self._api.get_paths_info(self._repo, [self._path(name)], repo_type=_DATASET)
        except FileNotFoundError:
            return None
        return next((item for item in found if hasattr(item, "blob_id")), None)

    def size(self, name: str) -> int | None:
        """Bytes of a file."""
        info = self._info(name)
        return None if info is None else int(info.size)

    def sha256(self, name: str) -> str | None:
        """What the Hub checked on arrival; None for a small file, which it keeps in git."""
        info = self._info(name)
        return None if info is None or info.lfs is None else str(info.lfs.sha256)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file."""
        if start == stop:
            return b""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(
            self._repo, self._path(name), repo_type=_DATASET, endpoint=self._api.endpoint
        )
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
        with _told(f"{self.url}/{name}"):
            answer = get_session().get(url, headers=headers, follow_redirects=True, timeout=120)
            hf_raise_for_status(answer)
        # Some caches answer a range of a small file with the whole of it.
        data = answer.content[start:stop] if answer.status_code == 200 else answer.content
        if len(data) != stop - start:
            raise TransientError(f"got {len(data):,} of {stop - start:,} bytes")
        return bytes(data)

    def read_small(self, name: str, limit: int) -> bytes | None:
        """A whole file."""
        return read_sized(self, name, limit)

    def write(self, name: str, data: bytes) -> None:
        """Upload the content; the commit follows in `flush`."""
        from huggingface_hub import CommitOperationAdd

        self._create_repository()
        operation = CommitOperationAdd(self._path(name), data)
        with _told(f"{self.url}/{name}"):
            self._api.preupload_lfs_files(self._repo, [operation], repo_type=_DATASET)
        with self._lock:
            self._written.append(operation)

    def create(self, name: str, data: bytes) -> bool:
        """A commit of this file alone, on top of the revision in which it was seen to be absent."""
        self.flush()
        self._create_repository()
        with _told(f"{self.url}/{name}"):
            head = self._api.repo_info(self._repo, repo_type=_DATASET).sha
        if self._info(name) is not None:
            return False
        from huggingface_hub import CommitOperationAdd

        self._commit([CommitOperationAdd(self._path(name), data)], name, head)
        return True

    def flush(self) -> None:
        """Commit what was written."""
        with self._lock:
            while self._written:
                part = self._written[:_FILES_PER_COMMIT]
                self._commit(part, f"{len(part)} files")
                del self._written[: len(part)]

    def _commit(
        self, operations: "list[CommitOperationAdd]", what: str, parent: str | None = None
    ) -> None:
        with _told(self.url), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a card needs no YAML header
            self._api.create_commit(
                self._repo, operations, commit_message=f"caskd store push: {what}",
                repo_type=_DATASET, parent_commit=parent,
            )  # fmt: skip

    def _create_repository(self) -> None:
        with self._lock:
            if not self._exists:
                with _told(self.url):
                    self._api.create_repo(
                        self._repo, repo_type=_DATASET, private=True, exist_ok=True
                    )
                self._exists = True

    def children(self) -> list[str]:
        """Names directly inside."""
        try:
            with _told(self.url):
                folder = self._folder or None
                tree = list(self._api.list_repo_tree(self._repo, folder, repo_type=_DATASET))
        except FileNotFoundError:
            return []
        names = (
            item.path.rpartition("/")[2] + "/" * (not hasattr(item, "blob_id")) for item in tree
        )
        return sorted(names)

    def inside(self, name: str) -> "HubStorage":
        """A folder inside."""
        return HubStorage(self._api, self._repo, self._path(name))


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn the library's errors into ours, without its words; absence is FileNotFoundError."""
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
            f"{where}: HF_HUB_OFFLINE is set. Unset it and run the same command again."
        ) from None
    except (EntryNotFoundError, RepositoryNotFoundError):
        raise FileNotFoundError(where) from None
    except HfHubHTTPError as error:
        raise _error(error.response.status_code, where) from None
    except (FileNotFoundError, StoreError, TransientError):
        raise
    except ValueError:
        raise StoreError(f"{where}: the Hub does not take this name or card.") from None
    except (OSError, RuntimeError, HTTPError):
        raise TransientError("no good answer (connection failed)") from None


def _error(status: int, where: str) -> Exception:
    if status >= 500 or status in _TRY_AGAIN:
        return TransientError(f"no good answer ({status})")
    return StoreError(
        f"{where}: refused ({status}). Log in with hf auth login or set HF_TOKEN to a token that "
        "may do this, then run the same command again: it goes on where it stopped."
    )
