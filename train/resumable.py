"""Options of `caskd train` that a resumed run may change, and those that older runs lack."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from caskd.train.objectives import MATCHES

RESUMABLE_CHANGES = frozenset(
    {
        "store",
        "accept_imported",
        "teacher_tokenizer",
        "out",
        "resume",
        "dry_run",
        "save_every",
        "keep_checkpoints",
        "micro_batch_size",
        "token_budget",
        "data",
        "messages_column",
        "allow_other_bytes",
        "gradient_checkpointing",
        "deepspeed_config",
        "zero_stage",
        "offload",
        "eval_store",
        "eval_every",
        "best_metric",
        "timeout_minutes",
        "tensorboard",
        "wandb",
    }
)
"""Options that a resumed run may change, because none of them changes the result.

Stores may have moved: a digest checks that they are the same stores with the same weights.
"""

ADDED_OPTIONS: Mapping[str, Any] = MappingProxyType({"match": MATCHES[0]})
"""Options that runs of older versions did not record, and what they did."""
