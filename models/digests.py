"""The digest of a model's weights: what two parties compare to mean the same model."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def weights_digest(folder: Path) -> str:
    """sha256 over the names and sha256 of the safetensors files in `folder`, streamed."""
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(_file_digest, files))
    lines = [f"{digest}  {file.name}\n" for file, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
