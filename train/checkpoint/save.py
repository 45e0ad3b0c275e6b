"""Save and restore a run. A checkpoint is a directory:

weights/              the student's whole weights in float32, as safetensors
optimizer/            the optimizer's moments as safetensors, one whole tensor per weight
student/              config and tokenizer
rng/00000.npz         random state of each rank
state.json            position, configuration, identity of the store
COMPLETE              written last: names, sizes and digests of all other files

Its content does not depend on ranks or ZeRO stages, so that any number of ranks can resume it at
any stage. Nothing in it is ever unpickled.
"""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from caskd.store.errors import CaskdError, CorruptError, IdentityError, UsageError
from caskd.store.io import check_readable, read_json_object
from caskd.train.checkpoint.manifest import (
    OPTIMIZER,
    RNG,
    STATE,
    STUDENT,
    WEIGHTS,
    complete,
)
from caskd.train.checkpoint.rng import load_rng, save_rng
from caskd.train.checkpoint.tensor_files import REMEDY, SavedTensors, write_tensors
from caskd.train.engine import TrainEngine
from caskd.train.resumable import ADDED_OPTIONS, RESUMABLE_CHANGES


class NonFiniteError(CaskdError):
    """The loss, the gradient or the weights contain nan or infinity."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Position and identity of a run after a step: everything but tensors.

    Attributes:
        step: optimizer steps done.
        epoch: complete passes over the store.
        examples_consumed: examples seen, over all ranks.
        skipped_steps: steps whose gradient was not finite.
        world_size: number of ranks.
        store_digest: of the store's seal.
        teacher: name, for the model card.
        config: the resolved options.
        text: EOS, BOS, template of the stores, for the export (`TeacherText`); None in checkpoints
            of older versions.
        delegation: counts of earlier steps that give the share of delegated rows; None without
            --delegate.
    """

    step: int
    epoch: int
    examples_consumed: int
    skipped_steps: int
    world_size: int
    store_digest: str
    teacher: str
    config: Mapping[str, Any]
    text: Mapping[str, Any] | None = None
    delegation: Mapping[str, Any] | None = None


def save_checkpoint(directory: Path, engine: TrainEngine, tokenizer: Any, state: RunState) -> None:
    """Write a checkpoint, complete or not at all. Every rank must call it.

    Raises:
        UsageError: `directory` exists; whatever it holds stays as it is.
        NonFiniteError: a weight is nan or infinite; such weights are never saved.
    """
    first = engine.ranks.rank == 0
    is_taken = first and not _make(directory)
    # All ranks learn of it; this is also the barrier before they write.
    if engine.sum_over_ranks(torch.tensor([float(is_taken)], device=engine.ranks.device)) > 0:
        raise UsageError(
            f"{directory}: exists and was not made by this save, expected a new directory; nothing "
            "was saved: move it elsewhere, or train into another --out"
        )
    save_rng(directory / RNG / f"{engine.ranks.rank:05d}.npz")
    for name, tensors in (
        (WEIGHTS, _finite(directory, engine.state.weights())),
        (OPTIMIZER, engine.state.optimizer()),
    ):
        if first:
            write_tensors(directory / name, tensors)
        for _ in tensors:  # gathering a tensor needs every rank
            pass
    if first:
        _describe_student(directory / STUDENT, engine.module.model, tokenizer)
        content = {**asdict(state), "versions": versions()}
        (directory / STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    engine.barrier()
    if first:
        complete(directory)
    engine.barrier()


def _make(directory: Path) -> bool:
    """Create the directory and the parts that several ranks fill; False if it exists."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    for name in (RNG, STUDENT):
        (directory / name).mkdir()
    return True


def _finite(
    directory: Path, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights, unchanged; every rank raises at the first one that is not finite."""
    for name, value in weights:
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f"{directory}: weight {name} is not finite; nothing was saved; export an "
                "earlier checkpoint and start a new run from it with a lower --lr"
            )
        yield name, value


def _describe_student(directory: Path, model: Any, tokenizer: Any) -> None:
    model.config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@torch.no_grad()
def load_weights(directory: Path, model: Any) -> None:
    """Load a checkpoint's weights into a model of the same shape.

    Raises:
        CorruptError: the names of the weights differ from the model's.
    """
    saved = SavedTensors(directory / WEIGHTS)
    kept = model.state_dict().keys()
    tensors = dict(model.named_parameters())
    tensors |= {name: value for name, value in model.named_buffers() if name in kept}
    if tensors.keys() != saved.keys():
        different = sorted(tensors.keys() ^ saved.keys())[0]
        raise CorruptError(
            f"{directory}: weight {different} is missing in {WEIGHTS}/ or in the model of the "
            "config",
            cure=REMEDY,
        )
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])


def load_checkpoint(directory: Path, engine: TrainEngine) -> None:
    """Restore masters, optimizer and random state from a verified checkpoint.

    The engine's module must have been loaded with `load_weights`. If the number of ranks changed,
    each rank keeps the random state that it was seeded with.
    """
    engine.state.restore_masters(SavedTensors(directory / WEIGHTS))
    moments = SavedTensors(directory / OPTIMIZER)
    if moments:
        engine.state.restore_optimizer(moments)
    saved_ranks = sorted((directory / RNG).glob("*.npz"))
    if len(saved_ranks) == engine.ranks.world_size:
        load_rng(saved_ranks[engine.ranks.rank])


def read_state(directory: Path) -> RunState:
    """Read the position and identity of a checkpoint.

    Raises:
        CorruptError: the file is missing or damaged.
    """
    try:
        content = read_json_object(directory / STATE, constants=True)
        content.pop("versions")
        return RunState(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        check_readable(error, str(directory / STATE))
        raise CorruptError(f"{directory}: {STATE} is missing or damaged", cure=REMEDY) from None


def check_resumable(state: RunState, *, config: Mapping[str, Any], store_digest: str) -> None:
    """Refuse to resume with other stores or with options that would change the result.

    Raises:
        IdentityError: the stores, or the value of an option outside `RESUMABLE_CHANGES`, differ.
    """
    if state.store_digest != store_digest:
        raise IdentityError(
            f"--store: seals and weights have digest {store_digest[:12]}; expected "
            f"{state.store_digest[:12]}, from which the run was trained; pass the same stores with "
            "the same weights, or start a new run with another --out"
        )
    check_same_options(state.config, config)


def check_same_options(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse options that would change the result of the run that recorded others.

    Raises:
        IdentityError: the value of an option outside `RESUMABLE_CHANGES` differs.
    """
    for name, value in config.items():
        before = recorded.get(name, ADDED_OPTIONS.get(name))
        if name == "student":  # the weights come from the checkpoint; the folder may have moved
            value, before = Path(value).name, Path(str(before)).name
        if name == "init_from" and value and before:  # the run may have been renamed
            is_same = value.rpartition(" ")[2] == before.rpartition(" ")[2]
            value = before if is_same else value
        if name not in RESUMABLE_CHANGES and before != value:
            raise IdentityError(
                f"{_shown(name)} {value}: expected {before}, with which the run was "
                "started; pass the same value, or start a new run with another --out"
                f"{_further(name)}"
            )


def _shown(option: str) -> str:
    """How a user gives an option: by its flag, but row weights in Python alone."""
    return option if option == "row_weights" else f"--{option.replace('_', '-')}"


def _further(option: str) -> str:
    """How a finished run is trained for more steps."""
    return ", from its weights with --init-from RUN" if option == "steps" else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on."""
    names = ("caskd", "torch", "transformers", "deepspeed", "numpy")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}
