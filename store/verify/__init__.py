"""Verify a store and repair it."""

from caskd.store.verify.repair import repair_lines, repair_store
from caskd.store.verify.verifier import verify_store

__all__ = [
    "repair_lines",
    "repair_store",
    "verify_store",
]
