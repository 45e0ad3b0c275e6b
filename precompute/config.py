"""What a capture is asked for: one source for flag, default, help and validation."""

from dataclasses import dataclass
from typing import Literal

from caskd.store.corpus import Columns
from caskd.store.errors import UsageError
from caskd.store.layout import chunk_rows_for

MAX_TOP_K = 65_535  # num_kept is uint16


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Run the teacher once over a corpus and keep its top-k logits of every response token."""

    teacher: str
    """The frozen large model: a transformers folder, or a hub id."""

    data: tuple[str, ...]
    """Corpus files, read in this order: .jsonl, .parquet, .arrow or .csv."""

    store: str
    """Directory of the store to write, or to complete."""

    top_k: int = 64
    """Logits kept per response token."""

    min_mass: float = 1.0
    """Keep fewer: the shortest prefix of the top-k that reaches this probability."""

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

    dry_run: bool = False
    """Print every derived number and stop; nothing is written."""

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


def check_numbers(config: PrecomputeConfig) -> None:
    """Refuse values that mean nothing, before anything is read.

    Raises:
        UsageError: names the flag, its value and what is expected.
    """
    limits = {
        "top_k": (1, MAX_TOP_K),
        "max_length": (2, None),
        "token_budget": (1, None),
    }
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if value is not None and (value < low or (high is not None and value > high)):
            expected = f"{low} or more" if high is None else f"{low} to {high:,}"
            raise UsageError(
                f"--{name.replace('_', '-')} is {value}; expected {expected}: give another number"
            )
    if not 0.0 < config.min_mass <= 1.0:
        raise UsageError(
            f"--min-mass is {config.min_mass}; expected a probability above 0 and at most 1: "
            "type 1.0 to keep all k, or 0.999"
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
