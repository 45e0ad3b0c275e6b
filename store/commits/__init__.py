"""The chain of integrity: commit records, publishing, the ledger of units, the seal."""

from caskd.store.commits import commit_record, ledger, publish
from caskd.store.commits.commit_record import PLAN, STAGING, CommitRecord, FileRecord
from caskd.store.commits.ledger import (
    DIGEST_LIST,
    Ledger,
    all_units,
    check_named_files,
    read_seal,
    unit_files,
)
from caskd.store.commits.seal import seal_content, write_seal

__all__ = [
    "DIGEST_LIST",
    "PLAN",
    "STAGING",
    "CommitRecord",
    "FileRecord",
    "Ledger",
    "all_units",
    "check_named_files",
    "commit_record",
    "ledger",
    "publish",
    "read_seal",
    "seal_content",
    "unit_files",
    "write_seal",
]
