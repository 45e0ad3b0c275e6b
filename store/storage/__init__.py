"""Storage backends behind one protocol: a directory, s3://, gs://, hf://."""

from caskd.store.storage.base import (
    Place,
    RetryPolicy,
    clean_url,
    is_remote,
    read_file,
    read_whole,
    retry,
    sha256_of,
)
from caskd.store.storage.directory import DirectoryPlace
from caskd.store.storage.open import open_place

__all__ = [
    "DirectoryPlace",
    "Place",
    "RetryPolicy",
    "clean_url",
    "is_remote",
    "open_place",
    "read_file",
    "read_whole",
    "retry",
    "sha256_of",
]
