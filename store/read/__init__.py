"""Read a store: TeacherStore, batches, chunk and shard caches, remote arrays."""

from caskd.store.read.arrays import StoreArrays
from caskd.store.read.batch import StoreBatch
from caskd.store.read.manifest import READ_ATTEMPTS, Manifest, read_checked, read_manifest
from caskd.store.read.teacher_store import TeacherStore

__all__ = [
    "READ_ATTEMPTS",
    "Manifest",
    "StoreArrays",
    "StoreBatch",
    "TeacherStore",
    "read_checked",
    "read_manifest",
]
