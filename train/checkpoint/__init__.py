"""Checkpoints: save, restore, completeness, tensor files, random-number state."""

from caskd.train.checkpoint.manifest import (
    CHECKPOINTS,
    STATE,
    STUDENT,
    WEIGHTS,
    checkpoint_path,
    find_checkpoint,
    is_complete,
    newest_complete,
    prune,
    step_of,
    unfinished_saves,
    verify,
)
from caskd.train.checkpoint.rng import repeat_bit_for_bit, seed_everything
from caskd.train.checkpoint.save import (
    NonFiniteError,
    RunState,
    check_resumable,
    check_same_options,
    load_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
    versions,
)

__all__ = [
    "CHECKPOINTS",
    "STATE",
    "STUDENT",
    "WEIGHTS",
    "NonFiniteError",
    "RunState",
    "check_resumable",
    "check_same_options",
    "checkpoint_path",
    "find_checkpoint",
    "is_complete",
    "load_checkpoint",
    "load_weights",
    "newest_complete",
    "prune",
    "read_state",
    "repeat_bit_for_bit",
    "save_checkpoint",
    "seed_everything",
    "step_of",
    "unfinished_saves",
    "verify",
    "versions",
]
