"""The teacher store: format, writer, reader, integrity. Needs numpy and zarr, never torch."""

from caskd.store.errors import StoreError
from caskd.store.format import StoreSpec
from caskd.store.read import StoreBatch, TeacherStore
from caskd.store.share import pull_store, push_store
from caskd.store.verify import verify_store

__all__ = [
    "StoreBatch",
    "StoreError",
    "StoreSpec",
    "TeacherStore",
    "pull_store",
    "push_store",
    "verify_store",
]
