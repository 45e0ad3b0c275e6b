"""Options of `caskd train` and `caskd export`. It imports no torch, so that `--help` is fast."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from caskd.store.errors import UsageError, given_without
from caskd.train.mask_options import MaskName, mask_contradiction
from caskd.train.objectives import (
    CONFIDENCE_WEIGHT,
    MATCHES,
    OBJECTIVES,
    Confidence,
    ConfidenceRule,
    DelegateRule,
    MatchName,
    ObjectiveName,
    Tail,
    confidence_contradiction,
    delegate_contradiction,
    resolve_objective,
    weight_contradiction,
)

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
    """Sealed teacher stores to train on: URL or URL=weight each; weights set shares of examples."""
    student: str
    """Model to train: a transformers directory or hub id. If its tokenizer is not the teacher's:
    only alm, cat-alm, xent, cat-xent* and random-xent."""
    teacher_tokenizer: str | None = None
    """Folder or hub id of the teacher's tokenizer, for stores that lack its EOS or template."""
    out: Path
    """Directory of the run; it gets metrics.jsonl and checkpoints/."""
    steps: int
    """Number of optimizer steps of the whole run."""
    objective: ObjectiveName = "cat-dist"
    """Loss to minimise. Mask: -l by the teacher only, -s by the student only, random-* random. alm:
    match likelihoods of spans of text, for any tokenizer."""
    w: float | None = None
    """Weight of the label term; the teacher term has 1 - w. Always 1 for xent; default 0.5 for
    dist, 0 for alm."""
    final_w: float | None = None
    """Label weight of the last step, reached linearly from --w. Default: --w in every step."""
    tail: Tail | None = None
    """How to treat teacher mass outside the top-k, for dist. Default: bucket; for stores of
    samples, with or without a head: none."""
    normalise: Normalise = "rows"
    """Divide the loss of a step by its response tokens (rows) or, as the paper, by its examples."""
    mask: MaskName | None = None
    """Rows that count, in place of the objective's mask. reachable: those to whose label the
    student gives at least --p-th before its first step; learnable: those where a --reference came
    closest to the teacher since."""
    p_th: float | None = None
    """With --mask reachable: least probability of a label. Default: 0.01."""
    reference: Path | None = None
    """With --mask learnable: finished run of such a student on the same stores, without a mask."""
    mask_share: float | None = None
    """With --mask learnable: share of the rows to keep. Default: 0.4."""
    mask_from_step: int = 0
    """Number of first steps without the mask; the objective's mask applies afterwards."""
    keep_fraction_from: Path | None = None
    """Run directory or metrics.jsonl whose keep_fraction a random-* mask copies at each step."""
    match: MatchName = "likelihood"
    """What alm and cat-alm match: the likelihood of each span of text; bytes-1to1 in spans of one
    token of both models the teacher's top-k, mapped to the student's tokens by their bytes."""
    data: tuple[str, ...] = ()
    """Corpus of stores of conversations, for a student with another tokenizer: it sees them in its
    own chat template. With --delegate fact-*: the corpus of --store, with a column marks."""
    messages_column: str = "messages"
    """Column of --data with the conversations."""
    allow_other_bytes: float = 0.01
    """Share of the examples that may teach nothing, because the student's tokenizer changes the
    bytes of their replies; of at least 256 examples, in a smaller store too."""
    delegate: DelegateRule | None = None
    """Also train a CALL token, with which the student asks for the large model, on the rows with
    the highest score: loss, rho, gap, unacceptable, random; fact-*: only on tokens that --data
    marks; l2d, ova: learning to defer, with xent."""
    delegate_share: float | None = None
    """Share of all rows that --delegate trains on CALL, in place of their label. Default: 0.15; l2d
    and ova have none."""
    confidence: ConfidenceRule | None = None
    """Also train the student to be unsure where its first choice is wrong (gatekeeper), or only
    where the teacher's is then right (cascade-gatekeeper)."""
    confidence_weight: float | None = None
    """Weight of --confidence, from 0 to less than 1; the objective has the rest. Default: 0.1."""
    global_batch_size: int = 32
    """Examples per optimizer step, summed over all ranks."""
    micro_batch_size: int = 8
    """Examples per rank and forward; further examples of a step are accumulated."""
    token_budget: int | None = None
    """Tokens per rank and forward, in place of --micro-batch-size; packs examples if possible. The
    plan tokenises every example for a student with another tokenizer."""
    lr: float = 2e-5
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Learning rate schedule; all but constant fall to a tenth of --lr, wsd in --decay-steps."""
    warmup_steps: int = 0
    """Number of first steps in which the learning rate rises linearly to its peak."""
    decay_steps: int | None = None
    """Number of last steps in which the rate of wsd falls. Default: a fifth of --steps."""
    optimizer: OptimizerName = "adamw"
    """Optimizer. adafactor keeps much less state and needs --zero-stage 0."""
    weight_decay: float = 0.0
    """Weight decay of matrices. Vectors (norms, biases) are never decayed."""
    clip_grad_norm: float = 1.0
    """Maximum 2-norm of the gradient; 0 disables clipping."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage: 1 shards optimizer state among ranks, 2 also gradients, 3 also weights."""
    offload: Literal["none", "optimizer"] = "none"
    """Keep optimizer state and float32 weights in host memory; needs --zero-stage 1 to 3."""
    dtype: Dtype | None = None
    """Dtype of forward and backward. Default: bfloat16 on CUDA, float32 on CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward; saves memory, takes a third more time."""
    deterministic: bool = False
    """Use deterministic GPU kernels, which are slower. CPU kernels are always deterministic."""
    deepspeed_config: Path | None = None
    """DeepSpeed JSON to merge into the configuration. A key that contradicts a flag is an error."""
    timeout_minutes: float = 30.0
    """Minutes that a rank waits for the others before the job fails."""
    eval_store: str | None = None
    """Sealed store to evaluate the student on, before the first step and after the last."""
    eval_every: int | None = None
    """Steps between further evaluations on --eval-store."""
    best_metric: BestMetric | None = None
    """Save a checkpoint whenever this metric on --eval-store is the best so far; kl needs a student
    with the teacher's tokenizer."""
    lora_rank: int | None = None
    """Train LoRA adapters of this rank through peft and freeze the weights."""
    lora_alpha: float | None = None
    """LoRA alpha; alpha / rank scales the adapters. Default: twice --lora-rank."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get adapters. Default: all linear modules but the head."""
    seed: int = 0
    """Seed of the order of examples, of random-* masks and of dropout."""
    save_every: int | None = None
    """Steps between checkpoints. The last step is always saved."""
    keep_checkpoints: int | None = None
    """Number of newest checkpoints to keep, besides the best one. Default: keep all."""
    resume: bool = False
    """Continue from the newest complete checkpoint in --out. If none was ever completed, start
    anew."""
    init_from: Path | None = None
    """Finished run (or one checkpoint) whose weights, and nothing else, a new run starts with."""
    accept_imported: bool = False
    """Train from stores that caskd import made of another program's rows; see their card."""
    dry_run: bool = False
    """Check the options, print every derived number and the memory of each ZeRO stage, and stop."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, to OUT/tensorboard."""
    wandb: str | None = None
    """Weights & Biases project for the metrics; WANDB_MODE=offline keeps them in OUT."""

    def __post_init__(self) -> None:
        for name in ("store", "data"):  # a single one from Python code
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        for flag, value, least in (
            ("--steps", self.steps, 1),
            ("--global-batch-size", self.global_batch_size, 1),
            ("--micro-batch-size", self.micro_batch_size, 1),
            ("--token-budget", 1 if self.token_budget is None else self.token_budget, 1),
            ("--warmup-steps", self.warmup_steps, 0),
            ("--weight-decay", self.weight_decay, 0),
            ("--clip-grad-norm", self.clip_grad_norm, 0),
            ("--seed", self.seed, 0),
            ("--mask-from-step", self.mask_from_step, 0),
            ("--timeout-minutes", self.timeout_minutes, 0.01),
            ("--save-every", self.save_every, 1),
            ("--decay-steps", self.decay_steps, 1),
            ("--keep-checkpoints", self.keep_checkpoints, 1),
            ("--eval-every", self.eval_every, 1),
            ("--lora-rank", self.lora_rank, 1),
        ):
            # Also refuses nan.
            if value is not None and not least <= value < float("inf"):
                raise UsageError(f"{flag} {value}: expected at least {least}; pass a larger value")
        if not 0 <= self.allow_other_bytes <= 1:
            raise UsageError(
                f"--allow-other-bytes {self.allow_other_bytes}: expected 0 to 1; pass a share in "
                "this range"
            )
        for flag, weight in (("--w", self.w), ("--final-w", self.final_w)):
            if weight is not None and not 0 <= weight <= 1:
                raise UsageError(
                    f"{flag} {weight}: expected 0 (teacher only) to 1 (label only); pass a weight "
                    "in this range"
                )
        # 0 would train nothing; these also refuse nan.
        for flag, number in (("--lr", self.lr), ("--lora-alpha", self.lora_alpha)):
            if number is not None and not 0 < number < float("inf"):
                raise UsageError(f"{flag} {number}: expected more than 0; pass another number")
        _check_together(self)
        _check_weights(self)
        _check_further_terms(self)

    @property
    def confidence_term(self) -> Confidence | None:
        """The confidence term; None without --confidence."""
        if self.confidence is None:
            return None
        weight = self.confidence_weight
        return Confidence(self.confidence, CONFIDENCE_WEIGHT if weight is None else weight)

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        values = asdict(self).items()
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values}
        return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}

    def to_shared_json(self) -> dict[str, Any]:
        """The options for files that others read: an absolute path becomes its last name.

        The student of a LoRA run keeps its path, because its adapters need that model.
        """
        kept = "student" if self.lora_rank is not None else None
        return {n: v if n == kept else _without_directory(v) for n, v in self.to_json().items()}


def _without_directory(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_directory(item) for item in value]
    is_absolute = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if is_absolute else value


def _check_together(config: TrainConfig) -> None:
    """Refuse options that need, or contradict, another option."""
    decay_steps = config.decay_steps or 0
    every, best = config.eval_every, config.best_metric
    evaluation = f"--eval-every {every}" if every else f"--best-metric {best}"
    needs_keep = resolve_objective(config.objective).needs_keep
    for is_wrong, message in (
        (
            config.warmup_steps + decay_steps > config.steps,
            f"--warmup-steps is {config.warmup_steps}"
            + (f" and --decay-steps {decay_steps}" if decay_steps else "")
            + f"; expected at most --steps {config.steps}; pass fewer",
        ),
        (
            config.decay_steps and config.schedule != "wsd",
            given_without(f"--decay-steps {decay_steps}", "--schedule wsd"),
        ),
        (
            config.optimizer == "adafactor" and config.zero_stage > 0,
            f"--optimizer adafactor: --zero-stage {config.zero_stage} flattens its "
            "matrices; expected stage 0; pass --zero-stage 0",
        ),
        (
            config.offload == "optimizer" and config.zero_stage == 0,
            given_without("--offload optimizer", "--zero-stage 1, 2 or 3"),
        ),
        (
            config.eval_store is None and (every or best),
            given_without(evaluation, "--eval-store STORE"),
        ),
        (
            needs_keep and config.keep_fraction_from is None,
            given_without(f"--objective {config.objective}", "--keep-fraction-from RUN"),
        ),
        (
            not needs_keep and config.keep_fraction_from is not None,
            f"--keep-fraction-from {config.keep_fraction_from}: --objective {config.objective} "
            "draws no random mask; expected random-xent or random-dist; omit one of the two",
        ),
        (
            config.match != MATCHES[0] and not OBJECTIVES[config.objective].matches_spans,
            f"--match {config.match}: --objective is {config.objective}; expected alm or cat-alm; "
            "pass one of them, or omit --match",
        ),
        (
            config.lora_rank is None and config.lora_alpha is not None,
            given_without(f"--lora-alpha {config.lora_alpha}", "--lora-rank RANK"),
        ),
    ):
        if is_wrong:
            raise UsageError(message)


def _check_weights(config: TrainConfig) -> None:
    """Refuse a label weight, of the first or the last step, that contradicts the objective."""
    name = config.objective
    for flag, w in (("--w", config.w), ("--final-w", config.final_w)):
        contradiction = weight_contradiction(name, w, flag, "--objective")
        if contradiction is not None:
            raise UsageError(contradiction)
    never_masks = config.mask_from_step >= config.steps
    mask = f"--mask {config.mask}" if config.mask else f"--objective {name}"
    has_mask = config.mask is not None or OBJECTIVES[name].rule != "all"
    if never_masks and config.mask_from_step and has_mask:
        raise UsageError(
            f"--mask-from-step {config.mask_from_step}: is not below --steps {config.steps}, so "
            f"that {mask} would never apply its mask; expected fewer; pass a smaller number"
        )


def _check_further_terms(config: TrainConfig) -> None:
    """Refuse options that contradict a CALL token, a confidence term or a mask by the student."""
    wrong = delegate_contradiction(
        config.delegate,
        config.delegate_share,
        objective=config.objective,
        lora_rank=config.lora_rank,
        init_from=config.init_from,
    )
    wrong = wrong or confidence_contradiction(
        config.confidence,
        config.confidence_weight,
        objective=config.objective,
        delegate=config.delegate,
    )
    given = resolve_objective(config.objective)
    wrong = wrong or mask_contradiction(
        config.mask, config.p_th, config.mask_share, config.reference, given, config.delegate
    )
    if wrong is not None:
        raise UsageError(wrong)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a checkpoint as an ordinary transformers model: safetensors, tokenizer, model card."""

    checkpoint: tyro.conf.Positional[Path]
    """Run directory (exports its newest complete checkpoint) or one checkpoint."""
    out: tyro.conf.Positional[Path]
    """Directory to write; it must be new or empty."""
    best: bool = False
    """Export the run's checkpoint with the best --best-metric, not its newest."""
    adapter: bool = False
    """Export only the adapter of a LoRA run, for peft. Default: merge it into the weights."""
    allow_unfinished: bool = False
    """Export also from a run that has not taken all its --steps; the model card says so."""
