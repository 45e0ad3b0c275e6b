"""Saving and restoring a run. A checkpoint is a directory:

deepspeed/            weights, optimizer state and masters, as DeepSpeed writes them, per rank
weights.safetensors   the student's whole weights in float32: all that export needs of them
student/              config and tokenizer
rng/00000.npz         random state of each rank
state.json            position, configuration, identity of the store
COMPLETE              written last: names, sizes and digests of all the rest
"""

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from caskd.store.errors import CaskdError, CorruptError, IdentityError, UsageError
from caskd.train.config import RESUMABLE_CHANGES
from caskd.train.engine import TrainEngine
from caskd.train.manifest import complete, is_complete
from caskd.train.rng import load_rng, save_rng

WEIGHTS = "weights.safetensors"
STUDENT = "student"
STATE = "state.json"


class NonFiniteError(CaskdError):
    """The loss, the gradient or the weights are not finite any more."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Position and identity of a run after some step: everything but tensors.

    Attributes:
        step: optimizer steps done.
        epoch: full passes over the store behind them.
        examples_consumed: examples seen, over all ranks.
        skipped_steps: steps whose gradient was not finite.
        world_size: ranks.
        store_digest: of the store's seal.
        teacher: its name, for the model card.
        config: the options, resolved.
    """

    step: int
    epoch: int
    examples_consumed: int
    skipped_steps: int
    world_size: int
    store_digest: str
    teacher: str
    config: Mapping[str, Any]


def save_checkpoint(directory: Path, engine: TrainEngine, tokenizer: Any, state: RunState) -> None:
    """Write a checkpoint; every rank calls it. It is there whole, or not at all.

    Raises:
        NonFiniteError: a weight is nan or infinite; such a student is never saved.
    """
    if is_complete(directory):
        return
    first = engine.ranks.rank == 0
    if first:
        shutil.rmtree(directory, ignore_errors=True)  # what a save that was cut short left
        for name in ("rng", STUDENT):
            (directory / name).mkdir(parents=True)
    engine.barrier()
    engine.save(directory)
    save_rng(directory / "rng" / f"{engine.ranks.rank:05d}.npz")
    weights = {name: value for name, value in engine.full_weights() if first}
    if first:
        _save_student(directory, weights, engine.module.model, tokenizer)
        content = {**asdict(state), "versions": versions()}
        (directory / STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    engine.barrier()
    if first:
        complete(directory)
    engine.barrier()


def _save_student(
    directory: Path, weights: dict[str, torch.Tensor], model: Any, tokenizer: Any
) -> None:
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f"{directory}: weight {name} is not finite; nothing was saved. "
                "Resume from the checkpoint before with a lower --lr in a new run."
            )
    save_file({name: value.contiguous() for name, value in weights.items()}, directory / WEIGHTS)
    model.config.save_pretrained(directory / STUDENT)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory / STUDENT)
    tokenizer.save_pretrained(directory / STUDENT)


def load_checkpoint(directory: Path, engine: TrainEngine) -> None:
    """Put weights, optimizer and random state back; its files must have been verified before."""
    engine.load(directory)
    load_rng(directory / "rng" / f"{engine.ranks.rank:05d}.npz")


def read_state(directory: Path) -> RunState:
    """The position and identity that a checkpoint holds.

    Raises:
        CorruptError: it is not the file that caskd writes.
    """
    try:
        content = json.loads((directory / STATE).read_bytes())
        content.pop("versions")
        return RunState(**content)
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptError(f"{directory}: {STATE} is missing or damaged.") from None


def check_resumable(
    state: RunState, *, config: Mapping[str, Any], store_digest: str, world_size: int
) -> None:
    """Refuse to resume what would not be the same run.

    Raises:
        IdentityError: another store, or another value of an option that decides what is learnt.
        UsageError: another number of ranks.
    """
    if state.store_digest != store_digest:
        raise IdentityError(
            f"--store: seals and weights give {store_digest[:12]}, but the run was trained from "
            f"{state.store_digest[:12]}. Give the same stores with the same weights, or start a "
            "new run in another --out."
        )
    for name, value in config.items():
        before = state.config.get(name)
        if name not in RESUMABLE_CHANGES and before != value:
            raise IdentityError(
                f"--{name.replace('_', '-')} is {value}, but the run was started with {before}. "
                "Give the same value, or start a new run in another --out."
            )
    if state.world_size != world_size:
        raise UsageError(
            f"the checkpoint was written by {state.world_size} ranks, but there are {world_size} "
            f"now. Start with torchrun --nproc-per-node {state.world_size}."
        )


def versions() -> dict[str, str]:
    """What surrounds a run."""
    names = ("caskd", "torch", "transformers", "deepspeed", "numpy")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}
