"""Options of `caskd train` and `caskd export`; imports nothing heavy, so that `--help` is quick."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from caskd.store.errors import UsageError

Objective = Literal[
    "xent", "dist", "cat-xent", "cat-dist", "cat-xent-l", "cat-xent-s", "cat-dist-l", "cat-dist-s"
]
Tail = Literal["bucket", "renormalise", "drop"]
Normalise = Literal["rows", "examples"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a student from a store, without the teacher.

    One process, or several: torchrun --nproc-per-node N -m caskd.cli train ...
    """

    store: tuple[str, ...]
    """Sealed teacher stores to learn from, each as URL or URL=weight (its share)."""
    student: str
    """The model to train: a transformers directory or hub id, with the tokenizer of the teacher."""
    out: Path
    """Directory of this run: metrics.jsonl and checkpoints/."""
    steps: int
    """Optimizer steps of the whole run."""
    objective: Objective = "cat-dist"
    """What to minimise; -l masks by the teacher only, -s by the student only."""
    w: float | None = None
    """Weight of the label, 1 - w of the teacher; by default 1 for *xent* and 0.5 for *dist*."""
    tail: Tail = "bucket"
    """What becomes of the teacher's probability outside its top-k."""
    global_batch_size: int = 32
    """Examples per optimizer step, over all ranks."""
    micro_batch_size: int = 8
    """Examples per rank per forward; the rest of the batch is gradient accumulation."""
    token_budget: int | None = None
    """Tokens per rank per forward, in place of --micro-batch-size; packs where the student can."""
    lr: float = 2e-5
    """Peak learning rate; a cosine takes it to a tenth at the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices; vectors (norms, biases) are never decayed."""
    clip_grad_norm: float = 1.0
    """Largest 2-norm of the gradient; 0 does not clip."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed divides among ranks: 1 optimizer state, 2 gradients too, 3 weights too."""
    dtype: Dtype | None = None
    """Of the forward and backward; by default bfloat16 on CUDA and float32 on CPU."""
    seed: int = 0
    """Of the order of examples and of dropout."""
    save_every: int | None = None
    """Steps between checkpoints; the last step is always saved."""
    resume: bool = False
    """Go on from the newest complete checkpoint in --out."""
    normalise: Normalise = "rows"
    """Divide the loss of a step by its response tokens, or by its examples (the paper's way)."""
    deepspeed_config: Path | None = None
    """A DeepSpeed JSON to merge; a key that contradicts a flag is an error."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: less memory, a third more time."""
    dry_run: bool = False
    """Print every derived number and stop."""

    def __post_init__(self) -> None:
        if isinstance(self.store, str):  # one store, as one writes it in Python
            object.__setattr__(self, "store", (self.store,))
        for flag, value, least in (
            ("--steps", self.steps, 1),
            ("--global-batch-size", self.global_batch_size, 1),
            ("--micro-batch-size", self.micro_batch_size, 1),
            ("--token-budget", 1 if self.token_budget is None else self.token_budget, 1),
            ("--warmup-steps", self.warmup_steps, 0),
            ("--weight-decay", self.weight_decay, 0),
            ("--clip-grad-norm", self.clip_grad_norm, 0),
            ("--lr", self.lr, 0),
            ("--seed", self.seed, 0),
            ("--save-every", 1 if self.save_every is None else self.save_every, 1),
        ):
            if not least <= value < float("inf"):  # written so that nan fails, too
                raise UsageError(f"{flag} is {value}; expected at least {least}.")
        if self.w is not None and not 0 <= self.w <= 1:
            raise UsageError(f"--w is {self.w}; expected 0 (teacher only) to 1 (label only).")
        if self.warmup_steps > self.steps:
            raise UsageError(
                f"--warmup-steps is {self.warmup_steps}; expected at most --steps {self.steps}."
            )

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


RESUMABLE_CHANGES = frozenset(
    {
        "store", "out", "resume", "dry_run", "save_every", "micro_batch_size",
        "token_budget",
        "gradient_checkpointing", "deepspeed_config",
    }
)  # fmt: skip
"""Options that a resumed run may change: none of them changes what is learnt from which example.

Stores may have moved; that they are the same ones, with the same weights, is told by a digest.
"""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a checkpoint as an ordinary transformers model: safetensors, tokenizer, model card."""

    checkpoint: tyro.conf.Positional[Path]
    """A run's directory (its newest complete checkpoint) or one checkpoint."""
    out: tyro.conf.Positional[Path]
    """The directory to write; new or empty."""
