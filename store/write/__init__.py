"""Plan an empty store and write its shards."""

from caskd.store.write.planner import find_store, plan_store, read_spec
from caskd.store.write.writer import (
    ShardExample,
    ShardWork,
    StoreWriter,
    pilot_rows,
    record_text_counts,
)

__all__ = [
    "ShardExample",
    "ShardWork",
    "StoreWriter",
    "find_store",
    "pilot_rows",
    "plan_store",
    "read_spec",
    "record_text_counts",
]
