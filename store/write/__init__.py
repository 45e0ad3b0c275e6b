"""Plan an empty store and write its shards."""

from caskd.store.write.planner import check_fillable, find_store, plan_store, read_spec
from caskd.store.write.writer import (
    ShardExample,
    ShardWork,
    StoreWriter,
    record_text_counts,
)

__all__ = [
    "ShardExample",
    "ShardWork",
    "StoreWriter",
    "check_fillable",
    "find_store",
    "plan_store",
    "read_spec",
    "record_text_counts",
]
