"""Digests of a model's weights and config: two models are the same if both digests agree."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from caskd.store.errors import UsageError
from caskd.store.io import StrangeFileError, read_json_object

_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Keys of config.json that describe who wrote it, or the dtype that an identity holds itself."""
_OLD_DIGITS = 32


def weights_digest(folder: Path) -> str:
    """sha256 over the names and sha256 of the safetensors files in `folder`, streamed."""
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(_file_digest, files))
    lines = [f"{digest}  {file.name}\n" for file, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def config_digest(folder: Path) -> str:
    """sha256 of config.json without the keys that do not affect the forward pass.

    Raises:
        UsageError: it is not the JSON of a config.
    """
    file = folder / "config.json"
    try:
        config = read_json_object(file, constants=True)
    except StrangeFileError as error:
        raise UsageError(
            f"{file}: {error}; expected the config of a model; copy or download it again"
        ) from None
    kept = {name: value for name, value in config.items() if name not in _NOT_THE_MODEL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def may_be_same_config(first: str | None, second: str | None) -> bool:
    """Whether two values of the field `config_digest` can belong to the same model.

    Older predictions files hold 32 digits over another selection of keys: such a value is accepted
    without comparing.
    """
    old = any(value is not None and len(value) == _OLD_DIGITS for value in (first, second))
    return old or first == second


def _file_digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
