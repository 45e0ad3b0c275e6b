"""The teacher store: format, writer, reader, integrity. Needs numpy and zarr, never torch.

Names are imported on first use, so that `caskd --help` needs no numpy.
"""

from typing import TYPE_CHECKING

from caskd.store.imports import lazy_exports

if TYPE_CHECKING:
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

__getattr__ = lazy_exports(
    __name__,
    {
        "StoreBatch": "read",
        "StoreError": "errors",
        "StoreSpec": "format",
        "TeacherStore": "read",
        "pull_store": "share",
        "push_store": "share",
        "verify_store": "verify",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
