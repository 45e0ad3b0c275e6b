"""The teacher store: format, writer, reader, integrity. Needs numpy and zarr, never torch."""

from caskd.store.errors import StoreError
from caskd.store.format.spec import StoreSpec
from caskd.store.read.batch import StoreBatch
from caskd.store.read.teacher_store import TeacherStore
from caskd.store.share.copy import pull_store, push_store
from caskd.store.verify.verifier import verify_store

__all__ = [
    "StoreBatch",
    "StoreError",
    "StoreSpec",
    "TeacherStore",
    "pull_store",
    "push_store",
    "verify_store",
]
