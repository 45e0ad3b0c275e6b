"""Options of a capture: the one source of its flags, defaults, help and validation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from caskd.store.corpus import Columns
from caskd.store.errors import UsageError, given_without
from caskd.store.format import (
    DEFAULT_ENCODING,
    HEAD_SAMPLED,
    SAMPLED,
    TOPK,
    RowKind,
    StoreSpec,
    layout,
    written_encodings,
)

MAX_TOP_K = 65_535  # num_kept is uint16
DEFAULT_TOP_K = 64
DEFAULT_SHARD_ROWS = 65_536
MAX_SAMPLES = 8_192  # a chunk of 512 rows then has 4 million cells

# A Literal made from the table is unknown to a type checker, which sees plain text instead.
if TYPE_CHECKING:
    EncodingName = str
else:
    EncodingName = Literal[tuple(written_encodings())]
    """Names of the table, as `--encoding` lists them."""


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Run the teacher once over a corpus and store its top-k logits for every response token."""

    teacher: str
    """Teacher model: a transformers folder, or a hub id."""

    data: tuple[str, ...]
    """Corpus files (.jsonl, .parquet, .arrow or .csv), read in this order. Each is a path, or
    hf://datasets/USER/NAME[@REVISION]/PATH."""

    store: str
    """Local directory of the store to create, or to complete."""

    top_k: int | None = None
    """Number of logits to store per response token; 64 by default, none with --sample."""

    min_mass: float | None = None
    """Store only the shortest prefix of the top-k that reaches this probability."""

    sample: int | None = None
    """Store N samples from the full distribution instead of the top-k (train with --tail none). 50
    samples take about a third of the bytes of 64 logits."""

    head: int | None = None
    """With --sample: store the H likeliest tokens of each row with their probabilities, and draw
    the samples from the others (format 2). The estimate stays unbiased; its variance is smaller."""

    sample_seed: int = 0
    """Seed of the samples. They depend on the seed and the row only, not on batches or workers."""

    encoding: EncodingName | None = None
    """Row encoding: fitted2 (the default) rounds the log-probabilities of a top-k (mean KL at most
    1e-5, the label within 0.004 nat); exact keeps every bit. An existing store keeps its own."""

    shard_rows: int | None = None
    """Response tokens per shard, the unit of work; 65,536 by default, or as planned. A stopped run
    loses at most one shard."""

    prompt_column: str = "prompt"
    """Column of the prompt."""

    response_column: str = "response"
    """Column of the response."""

    messages_column: str = "messages"
    """Column of the conversation, for data rendered by the chat template."""

    text_column: str = "text"
    """Column of plain text; all of it is response."""

    task_column: str = "task"
    """Column of the example's task name; optional in the data."""

    eos: bool = True
    """Append EOS to every response, as a row. Without it a student never learns to stop."""

    chat_turns: Literal["all", "last"] = "all"
    """Replies of a conversation that become rows: all, or the last one."""

    chat_template: str | None = None
    """File with a chat template (Jinja) to use instead of the teacher's own."""

    template_arguments: str | None = None
    """Arguments of the chat template, a JSON object such as {"enable_thinking": false}."""

    train_template_tokens: bool = False
    """Make rows of what the template itself writes at the start of a reply, such as an empty think
    block; by default it is context."""

    max_length: int | None = None
    """Maximum tokens per example, prompt and response together; by default the teacher's limit."""

    on_long: Literal["error", "truncate", "skip"] = "error"
    """Policy for longer examples: stop, cut the end of the response (and omit EOS), or skip."""

    on_empty: Literal["error", "skip"] = "skip"
    """Policy for examples without a response token: stop, or count them as empty."""

    on_bad_chat: Literal["error", "skip"] = "error"
    """Policy for conversations that the chat template cannot place: stop after counting all, or
    skip and count them as chat_refused."""

    on_bad_text: Literal["error", "replace"] = "error"
    """Policy for JSON text with half of a surrogate pair: stop, or write U+FFFD in its place."""

    on_unfinished: Literal["skip", "keep"] = "skip"
    """Policy for answers that a limit cut (records with `finished: false`): leave them out and
    count them, or keep them without an end, so that they teach no stopping."""

    on_duplicate: Literal["keep", "skip"] = "keep"
    """Policy for exact repeats of earlier examples: keep their rows, or skip and count them."""

    on_out_of_vocabulary: Literal["error", "skip"] = "error"
    """Policy for examples with a token outside the teacher's vocabulary: stop, or skip and count
    them."""

    max_non_finite: float = 0.001
    """Largest share of examples with NaN or Inf from the teacher before the capture stops; 0 stops
    at the first, 1 never. Their rows are stored without teacher values."""

    tokenize_processes: int | None = None
    """Processes that tokenise; by default one per core, or only this one for a small corpus."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type in which the teacher computes; auto uses the checkpoint's own."""

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    """Attention implementation; auto uses transformers' default. Flash attention needs no
    padding."""

    backend: Literal["transformers", "vllm", "server"] = "transformers"
    """What runs the teacher: transformers in this process, a vLLM engine that this process starts,
    or a server of vLLM or SGLang at --url. A server gives log-probabilities; --teacher is then the
    folder (or hub id) of the served model's tokenizer and config, whose weights are not needed."""

    url: tuple[str, ...] = ()
    """With --backend server: URL of the server, all before /v1; repeat the flag for servers of one
    model, which share the examples. A token of access is read from CASKD_SERVER_TOKEN."""

    served_model: str | None = None
    """With --backend server: name of the model there, if the server lists several."""

    server_concurrency: int = 32
    """With --backend server: requests that each URL has at a time."""

    tensor_parallel: int = 1
    """Number of devices over which each weight of the teacher is divided. With --backend
    transformers torchrun starts that many processes, which are one worker; the engine of --backend
    vllm starts them itself."""

    adapter: str | None = None
    """A peft adapter to apply to the teacher: a folder, or a hub id."""

    device: str = "auto"
    """Device of the teacher: cpu, cuda or cuda:1; auto uses a GPU if there is one."""

    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """How to place layers on several GPUs (accelerate's device map)."""

    token_budget: int = 8192
    """Tokens per forward pass, padding included; halved when memory runs out."""

    deterministic: bool = False
    """Fix batches and kernels, so that equal runs produce equal bytes; slower."""

    executor: Literal["local", "torchrun", "ray"] = "local"
    """How to launch workers: local (this process), torchrun (one per GPU), or ray (a cluster)."""

    worker: int | None = None
    """Number of this process among --num-workers, counted from 0, as in a SLURM array."""

    num_workers: int = 1
    """Number of workers that share the job; with --executor ray, how many to start."""

    dry_run: bool = False
    """Print every derived number and stop; write nothing."""

    @property
    def kept_logits(self) -> int | None:
        """k of the top-k; None for a sampled store."""
        if self.sample is not None:
            return None
        return DEFAULT_TOP_K if self.top_k is None else self.top_k

    @property
    def planned_shard_rows(self) -> int:
        """Rows of a shard of a new store."""
        return DEFAULT_SHARD_ROWS if self.shard_rows is None else self.shard_rows

    @property
    def row_kind(self) -> RowKind:
        """The kind of rows to store."""
        if self.sample is None:
            return TOPK
        return SAMPLED if self.head is None else HEAD_SAMPLED

    @property
    def columns(self) -> Columns:
        """All column names."""
        return Columns(
            prompt=self.prompt_column,
            response=self.response_column,
            messages=self.messages_column,
            text=self.text_column,
            task=self.task_column,
        )


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PrecomputeConfig):
    """Check a capture, tokenise its corpus, lay out the store, and forecast its size and time."""

    probe: bool = False
    """Load the teacher and run it for about a minute to measure time, memory and bytes."""

    json: bool = False
    """Print the plan as one JSON object."""


def check_numbers(config: PrecomputeConfig) -> None:
    """Refuse invalid values, before any file is read.

    Raises:
        UsageError: with the flag, its value, the expected range and what to pass.
    """
    limits = {
        "top_k": (1, MAX_TOP_K),
        "sample": (1, MAX_SAMPLES),
        "head": (1, MAX_SAMPLES),
        "sample_seed": (0, 2**63 - 1),
        "max_length": (2, None),
        "token_budget": (1, None),
        "server_concurrency": (1, 4096),
        "tensor_parallel": (1, 1024),
        "tokenize_processes": (1, None),
    }
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if value is not None and (value < low or (high is not None and value > high)):
            expected = f"{low} or more" if high is None else f"{low} to {high:,}"
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: expected {expected}; pass another number"
            )
    _check_kind(config)
    check_encoding(config.encoding)
    if config.min_mass is not None and not 0.0 < config.min_mass <= 1.0:
        raise UsageError(
            f"--min-mass {config.min_mass}: expected a probability above 0 and at most 1; "
            "pass 1.0 to keep all k, or 0.999"
        )
    if not 0.0 <= config.max_non_finite <= 1.0:
        raise UsageError(
            f"--max-non-finite {config.max_non_finite}: expected a share from 0 to 1; "
            "pass 0 to stop at the first, or 1 never to stop"
        )
    if "://" in config.store:
        raise UsageError(
            f"--store {config.store}: expected a local directory; write there, then copy the "
            "sealed store with caskd store push"
        )
    if config.device_map is not None and config.device != "auto":
        raise UsageError(
            f"--device-map {config.device_map} and --device {config.device}: both were given; "
            "expected one of them; omit --device to use all GPUs"
        )
    layout.chunk_rows_for(config.planned_shard_rows)


def check_encoding(name: str | None) -> None:
    """Refuse an encoding that no new store may have.

    Raises:
        UsageError: an unknown name, or one of earlier versions.
    """
    names = written_encodings()
    if name is not None and name not in names:
        raise UsageError(
            f"--encoding {name}: not an encoding of new stores; expected {' or '.join(names)}; "
            "omit --encoding"
        )


def encoding_of(name: str | None, existing: StoreSpec | None) -> str:
    """The encoding of a store: as passed, else as planned, else the default."""
    planned = DEFAULT_ENCODING if existing is None else existing.encoding
    return planned if name is None else name


def _check_kind(config: PrecomputeConfig) -> None:
    """Refuse flags of both kinds of store: it holds a top-k or samples.

    Raises:
        UsageError: flags of both kinds were passed.
    """
    for flag, value in (("--top-k", config.top_k), ("--min-mass", config.min_mass)):
        if config.sample is not None and value is not None:
            raise UsageError(
                f"--sample {config.sample} and {flag} {value}: both were given; expected one of "
                f"them, a store holds samples or a top-k; omit {flag} or --sample"
            )
    if config.sample is None and config.head is not None:
        raise UsageError(
            f"--head {config.head}: was given without --sample; expected both, the head's tokens "
            f"beside draws of the others; add --sample 50, or pass --top-k {config.head} instead"
        )
    if config.sample is None and config.sample_seed:
        raise UsageError(given_without(f"--sample-seed {config.sample_seed}", "--sample 50"))
