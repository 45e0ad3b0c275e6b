"""What a capture is asked for: one source for flag, default, help and validation."""

from dataclasses import dataclass
from typing import Literal

from caskd.store.corpus import Columns
from caskd.store.errors import UsageError
from caskd.store.format import chunk_rows_for

MAX_TOP_K = 65_535  # num_kept is uint16
DEFAULT_TOP_K = 64
MAX_SAMPLES = 8_192  # a chunk of 512 rows then has 4 million cells


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Run the teacher once over a corpus and keep its top-k logits of every response token."""

    teacher: str
    """The frozen large model: a transformers folder, or a hub id."""

    data: tuple[str, ...]
    """Corpus files, read in this order: .jsonl, .parquet, .arrow or .csv; each a path, or
    hf://datasets/USER/NAME[@REVISION]/PATH."""

    store: str
    """Directory of the store to write, or to complete."""

    top_k: int | None = None
    """Logits kept per response token; 64, unless --sample is given."""

    min_mass: float | None = None
    """Keep fewer: the shortest prefix of the top-k that reaches this probability."""

    sample: int | None = None
    """Keep so many draws from the teacher's whole distribution instead of its top-k; train then
    with no tail. 50 draws take about a third of the room of 64 logits."""

    sample_seed: int = 0
    """Which draws; they depend on this and the row, not on batches or workers."""

    encoding: Literal["compact", "exact"] = "compact"
    """How rows are written: compact rounds logits (mean KL at most 1e-5), exact keeps the bits."""

    shard_rows: int = 65_536
    """Response tokens per unit of work; what is lost when a run stops is at most one of them."""

    prompt_column: str = "prompt"
    """Column of the prompt."""

    response_column: str = "response"
    """Column of the response."""

    messages_column: str = "messages"
    """Column of the conversation, for data that goes through the chat template."""

    text_column: str = "text"
    """Column of plain text, all of which is response."""

    task_column: str = "task"
    """Column that names an example's task; it may be missing."""

    eos: bool = True
    """End every response with EOS, as a row: without it a student never learns to stop."""

    max_length: int | None = None
    """Tokens of an example, prompt and response; the teacher's own limit by default."""

    on_long: Literal["error", "truncate", "skip"] = "error"
    """What to do with a longer example: stop, cut the response's end (and no EOS), or skip it."""

    on_empty: Literal["error", "skip"] = "skip"
    """What to do with an example that has nothing to predict: stop, or count it as empty."""

    on_duplicate: Literal["keep", "skip"] = "keep"
    """What to do with an exact repeat of an earlier example: keep its rows, or count it."""

    on_out_of_vocabulary: Literal["error", "skip"] = "error"
    """What to do with a token that the teacher does not know: stop, or count the example."""

    max_non_finite: float = 0.001
    """Share of examples in which the teacher may give NaN or Inf before the capture stops; those
    rows are kept without a teacher. 0 stops at the first, 1 never."""

    tokenize_processes: int | None = None
    """Processes that tokenise; one per core by default, none but this one for a small corpus."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers in which the teacher computes; auto is the checkpoint's own."""

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    """How the teacher attends; auto is what transformers takes. Flash needs no padding."""

    adapter: str | None = None
    """A peft adapter on the teacher: a folder, or a hub id."""

    device: str = "auto"
    """Where the teacher runs: cpu, cuda, cuda:1; auto takes the GPU where there is one."""

    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """For a teacher larger than one GPU: how transformers lays its layers over all of them."""

    token_budget: int = 8192
    """Tokens of one forward pass, padding included; halved when memory runs out."""

    deterministic: bool = False
    """Fix batches and kernels, so that the same run gives the same bytes; slower."""

    executor: Literal["local", "torchrun", "ray"] = "local"
    """Who runs the workers: this process, one process per GPU of torchrun, or a Ray cluster."""

    worker: int | None = None
    """Which of --num-workers this process is, counted from 0, as in a SLURM array."""

    num_workers: int = 1
    """Workers that share the job; with --executor ray, how many to start."""

    dry_run: bool = False
    """Print every derived number and stop; nothing is written."""

    @property
    def kept_logits(self) -> int | None:
        """k of a top-k; None where draws are kept instead."""
        if self.sample is not None:
            return None
        return DEFAULT_TOP_K if self.top_k is None else self.top_k

    @property
    def columns(self) -> Columns:
        """The column names, together."""
        return Columns(
            prompt=self.prompt_column,
            response=self.response_column,
            messages=self.messages_column,
            text=self.text_column,
            task=self.task_column,
        )


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PrecomputeConfig):
    """Check a capture, tokenise the corpus, lay out the store, and say what it will take."""

    probe: bool = False
    """Load the teacher and run it for about a minute: measures time, memory and bytes."""

    json: bool = False
    """Print everything as one JSON object, for scripts."""


def check_numbers(config: PrecomputeConfig) -> None:
    """Refuse values that mean nothing, before anything is read.

    Raises:
        UsageError: names the flag, its value and what is expected.
    """
    limits = {
        "top_k": (1, MAX_TOP_K),
        "sample": (1, MAX_SAMPLES),
        "sample_seed": (0, 2**63 - 1),
        "max_length": (2, None),
        "token_budget": (1, None),
        "tokenize_processes": (1, None),
    }
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if value is not None and (value < low or (high is not None and value > high)):
            expected = f"{low} or more" if high is None else f"{low} to {high:,}"
            raise UsageError(
                f"--{name.replace('_', '-')} is {value}; expected {expected}: give another number"
            )
    _check_kind(config)
    if config.min_mass is not None and not 0.0 < config.min_mass <= 1.0:
        raise UsageError(
            f"--min-mass is {config.min_mass}; expected a probability above 0 and at most 1: "
            "type 1.0 to keep all k, or 0.999"
        )
    if not 0.0 <= config.max_non_finite <= 1.0:
        raise UsageError(
            f"--max-non-finite is {config.max_non_finite}; expected a share from 0 to 1: "
            "type 0 to stop at the first, 1 never to stop"
        )
    if "://" in config.store:
        raise UsageError(
            f"--store is {config.store!r}; expected a local directory: write there, then copy it"
        )
    if config.device_map is not None and config.device != "auto":
        raise UsageError(
            f"--device-map {config.device_map} and --device {config.device} were both given; "
            "expected one of them: leave out --device to use all GPUs"
        )
    chunk_rows_for(config.shard_rows)


def _check_kind(config: PrecomputeConfig) -> None:
    """A store holds a top-k or draws, not both.

    Raises:
        UsageError: flags of both were given.
    """
    for flag, value in (("--top-k", config.top_k), ("--min-mass", config.min_mass)):
        if config.sample is not None and value is not None:
            raise UsageError(
                f"--sample {config.sample} and {flag} {value} were both given; expected draws or a "
                f"top-k, a store holds one of them: leave out {flag} or --sample"
            )
    if config.sample is None and config.sample_seed:
        raise UsageError(
            f"--sample-seed {config.sample_seed} was given without --sample; expected both, or "
            "neither: add --sample 50"
        )
