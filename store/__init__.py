"""The teacher store: format, writer, reader, integrity. Needs numpy and zarr, never torch."""

from caskd.store.batch import StoreBatch
from caskd.store.errors import StoreError
from caskd.store.reader import TeacherStore
from caskd.store.sharing import pull_store, push_store
from caskd.store.spec import StoreSpec
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
