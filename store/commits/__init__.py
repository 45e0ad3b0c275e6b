"""The chain of integrity: commit records, publishing, the ledger of records, the seal."""

from caskd.store.commits import commit_record, publish
from caskd.store.commits.commit_record import CommitRecord, FileRecord
from caskd.store.commits.file_parts import FileParts, difference_text
from caskd.store.commits.ledger import Ledger, all_units, check_named_files, read_seal, unit_files
from caskd.store.commits.seal import seal_content, write_seal

__all__ = [
    "CommitRecord",
    "FileParts",
    "FileRecord",
    "Ledger",
    "all_units",
    "check_named_files",
    "commit_record",
    "difference_text",
    "publish",
    "read_seal",
    "seal_content",
    "unit_files",
    "write_seal",
]
