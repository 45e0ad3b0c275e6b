"""Copying sealed stores between storage backends, and listing them."""

from caskd.store.share.copy import CopyReport, pull_store, push_store
from caskd.store.share.listing import list_stores, listing_lines

__all__ = [
    "CopyReport",
    "list_stores",
    "listing_lines",
    "pull_store",
    "push_store",
]
