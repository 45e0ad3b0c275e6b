"""Storage backends behind one protocol: a directory, s3://, gs://, hf://."""

from caskd.store.storage.base import (
    RetryPolicy,
    Storage,
    clean_url,
    is_remote,
    read_file,
    read_whole,
    retry,
    sha256_of,
)
from caskd.store.storage.directory import DirectoryStorage
from caskd.store.storage.open import open_storage

__all__ = [
    "DirectoryStorage",
    "RetryPolicy",
    "Storage",
    "clean_url",
    "is_remote",
    "open_storage",
    "read_file",
    "read_whole",
    "retry",
    "sha256_of",
]
