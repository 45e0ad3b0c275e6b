"""Weights of other runs: `--init-from`, with which a run starts, and `--reference` of a mask."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.models import call_id, check_class, check_vocabulary, open_config, open_tokenizer
from caskd.store.errors import UsageError
from caskd.store.io import read_json_object, value_text
from caskd.train.checkpoint import (
    CHECKPOINTS,
    COMPLETE,
    STATE,
    STUDENT,
    WEIGHTS,
    RunState,
    find_checkpoint,
    read_state,
    step_of,
    verify,
)
from caskd.train.config import TrainConfig
from caskd.train.data import RandomMask, RowWeights, StoreMix
from caskd.train.mask_options import check_mask_fields
from caskd.train.run.out_folder import is_first_rank

FLAG, REFERENCE = "--init-from", "--reference"
_ADAPTERS = ("lora_rank", "lora_alpha", "lora_targets")
_OF_NO_MODEL = frozenset({"_name_or_path", "transformers_version", "dtype", "use_cache"})
"""Fields of a config that do not change what the weights compute."""


@dataclass(frozen=True)
class InitialWeights:
    """A complete checkpoint of another run, whose weights alone are taken.

    Attributes:
        checkpoint: its directory.
        name: run and step, no path.
        digest: of the weights.
    """

    checkpoint: Path
    name: str
    digest: str

    @property
    def recorded(self) -> str:
        """How the new run's files name it."""
        return f"{self.name} sha256:{self.digest}"

    @property
    def shown(self) -> str:
        """The recorded name with the first digits of the digest."""
        return f"{self.name} sha256:{self.digest[:12]}"


def initial_weights(config: TrainConfig) -> InitialWeights | None:
    """Find and check the checkpoint of `--init-from`; None without the flag.

    Raises:
        UsageError: it is no run, is not finished, or has another student or other adapters.
        CorruptError: the checkpoint is damaged.
    """
    if config.init_from is None:
        return None
    checkpoint, state = _finished(FLAG, config.init_from)
    _check_student(config, checkpoint)
    _check_adapters(config, state.config)
    return _verified(checkpoint)


def reference_weights(config: TrainConfig, store: StoreMix) -> InitialWeights | None:
    """Find and check the checkpoint of `--reference`; None without the flag.

    Raises:
        UsageError: a store lacks what the mask reads; or it is no run, is not finished, or takes
            shorter texts.
        IdentityError: it reads another vocabulary than the stores'.
        CorruptError: the checkpoint is damaged.
    """
    if config.reference is None:
        return None
    check_mask_fields(config.mask, store.stores)
    checkpoint, _ = _finished(REFERENCE, config.reference)
    flag = f"{REFERENCE} {config.reference}"
    student = open_config(checkpoint / STUDENT, REFERENCE)
    tokenizer = open_tokenizer(checkpoint / STUDENT, REFERENCE)
    if call_id(student, tokenizer, flag) is not None:
        raise UsageError(
            f"{flag}: was trained with --delegate, on other losses; expected a run without a CALL "
            "token; pass the run of the same student and objective alone"
        )
    check_vocabulary(tokenizer, store.spec, flag)
    check_class(student, flag, int(store.token_counts().max()))
    return _verified(checkpoint)


def _finished(flag: str, run: Path) -> tuple[Path, RunState]:
    """The last checkpoint of a finished run, or the very one that `run` names."""
    checkpoint = find_checkpoint(run)
    verify(checkpoint, only=(STATE, f"{STUDENT}/"))
    state = read_state(checkpoint)
    if checkpoint != run and state.step < state.config["steps"]:
        raise UsageError(
            f"{flag} {run}: the run is not finished (step {state.step:,} of "
            f"{state.config['steps']:,}); expected a finished run; continue it with caskd train "
            f"--resume, or pass {checkpoint} for those weights"
        )
    return checkpoint, state


def _verified(checkpoint: Path) -> InitialWeights:
    """A checkpoint whose weights are whole, under its recorded name."""
    if is_first_rank():  # the other ranks wait for this one
        verify(checkpoint, only=(f"{WEIGHTS}/",))
    run = checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint
    name = f"{run.resolve().name} step {step_of(checkpoint)}"
    return InitialWeights(checkpoint, name, _digest(checkpoint))


def _check_student(config: TrainConfig, checkpoint: Path) -> None:
    """Refuse weights of another model: its weights could fit and mean something else."""
    theirs = open_config(checkpoint / STUDENT, FLAG).to_dict()
    ours = open_config(config.student, "--student").to_dict()
    for field in sorted({*theirs, *ours} - _OF_NO_MODEL):
        there, here = theirs.get(field), ours.get(field)
        if there != here:
            raise UsageError(
                f"--student {config.student}: {field} is {value_text(here)} in its config.json; "
                f"expected {value_text(there)}, as in the student of {FLAG} {config.init_from}; "
                "pass the student of that run"
            )


def _check_adapters(config: TrainConfig, theirs: Mapping[str, Any]) -> None:
    ours = config.to_json()
    for name in _ADAPTERS if theirs["lora_rank"] or ours["lora_rank"] else ():
        if theirs[name] != ours[name]:
            raise UsageError(
                f"--{name.replace('_', '-')} {ours[name]}: the run of {FLAG} {config.init_from} "
                f"has {theirs[name]}; expected the same adapters; pass them, or run caskd export "
                f"{config.init_from} MODEL and pass --student MODEL without {FLAG}"
            )


def _digest(checkpoint: Path) -> str:
    """sha256 over the recorded digests of the weights' files."""
    record = read_json_object(checkpoint / COMPLETE)["files"]
    weights = {n: item["sha256"] for n, item in record.items() if n.startswith(f"{WEIGHTS}/")}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def recorded_options(
    config: TrainConfig,
    mask: RandomMask | None,
    initial: InitialWeights | None,
    reference: InitialWeights | None,
    row_weights: RowWeights | None,
) -> dict[str, Any]:
    """The options as a run records them, with other runs as digests: they may move or continue."""
    options = config.to_shared_json()
    options["row_weights"] = None if row_weights is None else row_weights.name
    if initial is not None:
        options["init_from"] = initial.recorded
    if reference is not None:
        options["reference"] = reference.recorded
    if mask is not None:
        options["keep_fraction_from"] = f"sha256:{mask.digest}"
    return options
