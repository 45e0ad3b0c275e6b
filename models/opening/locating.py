"""Find the files of a checkpoint, and refuse what is none, in one line.

`source` is a folder or a hub id, `flag` the option that named it, such as `--teacher`: errors start
with the two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from caskd.store.errors import CaskdError, UsageError, reason
from caskd.store.io import check_readable, escape_control, refuse_mixup

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
WHOLE = "a transformers checkpoint of a causal LM in safetensors that needs no remote code"
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model or an adapter on this machine."""

    folder: Path
    name: str
    """Last folder name, or hub id: never a path."""
    revision: str | None
    """Commit on the hub; None for a folder."""


def locate(source: str, flag: str, wanted: str = "model", *, weights: bool = True) -> Checkpoint:
    """Find a folder, or download a hub id.

    Args:
        source: a folder or a hub id.
        flag: the option that named it.
        wanted: `model` or `adapter`.
        weights: whether a hub id is downloaded with its weights.

    Raises:
        UsageError: no such folder, or the hub does not provide it.
    """
    check_source(source, flag, wanted)
    folder = Path(source)
    if folder.is_dir():
        return Checkpoint(folder, folder.resolve().name, None)
    return _download(source, flag, _PATTERNS if weights else _PATTERNS[1:])


def _download(source: str, flag: str, patterns: list[str]) -> Checkpoint:
    """Files of a hub id, from the cache where there is no connection.

    Raises:
        UsageError: the hub does not provide it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(source, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        check_readable(error, f"{flag} {source}")
        raise UsageError(
            f"{flag} {source}: no such folder, and the hub raised {type(error).__name__}; expected "
            f"a folder or a hub id; check {flag} and the connection"
        ) from error
    return Checkpoint(snapshot, source, snapshot.name)  # the cache names a snapshot by its commit


def check_source(source: str | Path, flag: str, wanted: str = "model") -> None:
    """Refuse a path without a folder, and a folder of another kind than a model or an adapter.

    Raises:
        UsageError: names what the folder is, and the command for it.
    """
    text = str(source)
    refuse_gguf(Path(source), f"{flag} {text}")
    refuse_mixup(source, f"{flag} {text}", wanted)
    looks_like_a_path = text.count("/") > 1 or text.startswith((".", "/", "~"))
    if looks_like_a_path and not Path(source).is_dir():
        raise UsageError(
            f"{flag} {text}: no such folder; expected a folder or a hub id; check {flag}"
        )


def refuse_gguf(path: Path, subject: str) -> None:
    """Refuse a GGUF file, and a folder that holds no other weights.

    transformers would dequantise it into another model than the one that llama.cpp runs.

    Raises:
        UsageError: names the file and what to do.
    """
    file = path if path.suffix == ".gguf" and path.is_file() else None
    if file is None and path.is_dir() and not list(path.glob("*.safetensors")):
        file = min(path.glob("*.gguf"), default=None)
    if file is not None:
        raise UsageError(
            f"{subject}: its weights are GGUF ({escape_control(file.name)}), which caskd does not "
            "open; expected a folder with weights in safetensors; serve the GGUF file (SGLang, or "
            "vLLM with vllm-gguf-plugin) and pass --backend server with the folder of its "
            "tokenizer and config, or pass the model before quantisation"
        )


def check_safetensors(folder: Path, subject: str) -> None:
    """Refuse a checkpoint without weights in safetensors.

    Raises:
        UsageError: it has none.
    """
    if not list(folder.glob("*.safetensors")):
        refuse_gguf(folder, subject)
        raise UsageError(
            f"{subject}: no .safetensors file; expected a transformers checkpoint in safetensors; "
            f"convert it with save_pretrained, or pass another {subject.split(' ')[0]}"
        )


@cache
def check_reachable(source: str | Path, flag: str) -> None:
    """Refuse a hub id that can neither be downloaded nor is in the cache.

    transformers would try each of its files again for half a minute.

    Raises:
        UsageError: the hub does not provide it.
    """
    if not Path(source).is_dir():
        _download(str(source), flag, ["config.json", ADAPTER_CONFIG])


def check_openable(source: str | Path, flag: str) -> None:
    """`check_source` and `check_reachable` for what transformers opens: an adapter too."""
    check_source(source, flag, "adapter" if (Path(source) / ADAPTER_CONFIG).exists() else "model")
    check_reachable(source, flag)


def config_folder(source: str | Path) -> Path | None:
    """The folder of an opened model's config.json; None if the model has no such file.

    The folder of a hub id is a snapshot in the cache, whose name is the commit.
    """
    from transformers.utils import cached_file

    found = cached_file(
        source,
        "config.json",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
    )
    return None if found is None else Path(found).parent


@contextmanager
def opening_errors(shown: str | Path, flag: str, part: str, expected: str) -> Iterator[None]:
    """Turn every error of transformers about a checkpoint into one line."""
    try:
        yield
    except (CaskdError, MemoryError):
        raise
    except Exception as error:  # transformers and its quantisers raise every kind
        check_readable(error, f"{flag} {shown}")
        raise UsageError(
            f"{flag} {shown}: cannot open the {part} ({reason(error)}); expected {expected}"
        ) from error
