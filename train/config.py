"""Options of `caskd train` and `caskd export`; imports nothing heavy, so that `--help` is quick."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from caskd.store.errors import UsageError
from caskd.train.objectives import OBJECTIVES, ObjectiveName, Tail, resolve_objective

Normalise = Literal["rows", "examples"]
Dtype = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "linear", "constant", "wsd"]
OptimizerName = Literal["adamw", "adafactor"]
BestMetric = Literal["nll", "accuracy", "kl", "ece"]


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
    objective: ObjectiveName = "cat-dist"
    """What to minimise; -l masks by the teacher alone, -s by the student alone, random-* by chance.
    """
    keep_fraction_from: Path | None = None
    """The run (or its metrics.jsonl) whose share of kept rows a random-* mask has at each step."""
    w: float | None = None
    """Weight of the label, 1 - w of the teacher; by default 1 for *xent* and 0.5 for *dist*."""
    tail: Tail | None = None
    """What becomes of the teacher's probability outside its top-k: bucket by default; none is for
    sampled stores, whose default it is."""
    global_batch_size: int = 32
    """Examples per optimizer step, over all ranks."""
    micro_batch_size: int = 8
    """Examples per rank per forward; the rest of the batch is gradient accumulation."""
    token_budget: int | None = None
    """Tokens per rank per forward, in place of --micro-batch-size; packs where the student can."""
    mask_from_step: int = 0
    """Steps of plain training before the mask of a cat-* objective applies."""
    final_w: float | None = None
    """Label weight of the last step; it goes there linearly from --w. By default it stays."""
    lr: float = 2e-5
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """How the learning rate falls to a tenth at the last step; wsd: over --decay-steps only."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    decay_steps: int | None = None
    """Last steps of --schedule wsd, in which the rate falls; by default a fifth of --steps."""
    optimizer: OptimizerName = "adamw"
    """Adafactor keeps far less state; with --zero-stage 0 only."""
    weight_decay: float = 0.0
    """Decay of matrices; vectors (norms, biases) are never decayed."""
    clip_grad_norm: float = 1.0
    """Largest 2-norm of the gradient; 0 does not clip."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed divides among ranks: 1 optimizer state, 2 gradients too, 3 weights too."""
    offload: Literal["none", "optimizer"] = "none"
    """Keep the optimizer and float32 weights in host memory; with --zero-stage 1 to 3."""
    dtype: Dtype | None = None
    """Of the forward and backward; by default bfloat16 on CUDA and float32 on CPU."""
    seed: int = 0
    """Of the order of examples and of dropout."""
    save_every: int | None = None
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int | None = None
    """Newest checkpoints to keep, and the best one besides; by default all."""
    eval_store: str | None = None
    """A sealed store to measure the student on, before the first step and after the last."""
    eval_every: int | None = None
    """Steps between measurements on --eval-store."""
    best_metric: BestMetric | None = None
    """Save a checkpoint whenever this figure of --eval-store is the best so far."""
    lora_rank: int | None = None
    """Train low-rank adapters of this rank through peft, and leave the weights as they are."""
    lora_alpha: float | None = None
    """Scale of the adapters; by default twice --lora-rank."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get adapters; all linear ones but the head by default."""
    resume: bool = False
    """Go on from the newest complete checkpoint in --out."""
    normalise: Normalise = "rows"
    """Divide the loss of a step by its response tokens, or by its examples (the paper's way)."""
    deepspeed_config: Path | None = None
    """A DeepSpeed JSON to merge; a key that contradicts a flag is an error."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: less memory, a third more time."""
    deterministic: bool = False
    """Use kernels that repeat bit for bit on a GPU, which is slower; those of a CPU always do."""
    timeout_minutes: float = 30.0
    """How long a rank waits for the others before the job ends."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, under OUT/tensorboard."""
    wandb: str | None = None
    """Project of Weights & Biases to send the metrics to; WANDB_MODE=offline keeps them in OUT."""
    dry_run: bool = False
    """Print every derived number and the memory that each ZeRO stage needs, and stop."""

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
            ("--mask-from-step", self.mask_from_step, 0),
            ("--timeout-minutes", self.timeout_minutes, 0.01),
            ("--save-every", self.save_every, 1),
            ("--decay-steps", self.decay_steps, 1),
            ("--keep-checkpoints", self.keep_checkpoints, 1),
            ("--eval-every", self.eval_every, 1),
            ("--lora-rank", self.lora_rank, 1),
        ):
            # Written so that nan fails, too.
            if value is not None and not least <= value < float("inf"):
                raise UsageError(f"{flag} is {value}; expected at least {least}.")
        for flag, weight in (("--w", self.w), ("--final-w", self.final_w)):
            if weight is not None and not 0 <= weight <= 1:
                raise UsageError(
                    f"{flag} is {weight}; expected 0 (teacher only) to 1 (label only)."
                )
        _check_together(self)

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        values = asdict(self).items()
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values}
        return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}

    def to_shared_json(self) -> dict[str, Any]:
        """The same for files that others will read: of an absolute path only its last name.

        But for the student of an adapter, which is nothing without it.
        """
        kept = "student" if self.lora_rank is not None else None
        return {n: v if n == kept else _without_place(v) for n, v in self.to_json().items()}


def _without_place(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_place(one) for one in value]
    is_absolute = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if is_absolute else value


def _check_together(config: TrainConfig) -> None:
    """Options that say nothing without, or against, another one."""
    decay_steps = config.decay_steps or 0
    stage = f"--zero-stage is {config.zero_stage}"
    needs_keep = resolve_objective(config.objective).needs_keep
    for wrong, message in (
        (
            config.warmup_steps + decay_steps > config.steps,
            f"--warmup-steps is {config.warmup_steps}"
            + (f" and --decay-steps {decay_steps}" if decay_steps else "")
            + f"; expected at most --steps {config.steps}.",
        ),
        (
            config.decay_steps and config.schedule != "wsd",
            f"--decay-steps goes with --schedule wsd; got {config.schedule}.",
        ),
        (
            config.optimizer == "adafactor" and config.zero_stage > 0,
            f"{stage}; --optimizer adafactor looks at whole matrices, which stages 1 to 3 flatten. "
            "Add --zero-stage 0.",
        ),
        (
            config.offload == "optimizer" and config.zero_stage == 0,
            f"{stage}; --offload optimizer needs 1, 2 or 3.",
        ),
        (
            config.eval_store is None and (config.eval_every or config.best_metric),
            "--eval-every and --best-metric need --eval-store.",
        ),
        (
            needs_keep and config.keep_fraction_from is None,
            f"--objective {config.objective} needs --keep-fraction-from RUN, the run whose share "
            "of kept rows it has at each step.",
        ),
        (
            not needs_keep and config.keep_fraction_from is not None,
            "--keep-fraction-from goes with --objective "
            + " or ".join(name for name, value in OBJECTIVES.items() if value.needs_keep)
            + f"; got {config.objective}.",
        ),
        (
            config.lora_rank is None and config.lora_alpha is not None,
            "--lora-alpha goes with --lora-rank.",
        ),
    ):
        if wrong:
            raise UsageError(message)


RESUMABLE_CHANGES = frozenset(
    {
        "store", "out", "resume", "dry_run", "save_every", "keep_checkpoints", "micro_batch_size",
        "token_budget", "gradient_checkpointing", "deepspeed_config", "zero_stage", "offload",
        "eval_store", "eval_every", "best_metric", "timeout_minutes", "tensorboard", "wandb",
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
    best: bool = False
    """Of a run, the checkpoint that --best-metric chose, in place of the newest."""
    adapter: bool = False
    """Of a LoRA run, write the adapter alone, for peft; by default it is merged."""
