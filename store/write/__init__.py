"""Planning an empty store and writing its shards."""

from caskd.store.write.planner import STORE_JSON, find_store, plan_store, read_spec
from caskd.store.write.writer import ShardExample, ShardWork, StoreWriter, pilot_rows

__all__ = [
    "STORE_JSON",
    "ShardExample",
    "ShardWork",
    "StoreWriter",
    "find_store",
    "pilot_rows",
    "plan_store",
    "read_spec",
]
