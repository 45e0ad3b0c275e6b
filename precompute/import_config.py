"""Options of `caskd import`: the one source of its flags, defaults, help and validation."""

from dataclasses import dataclass
from typing import Literal

import tyro

from caskd.precompute.config import DEFAULT_SHARD_ROWS, EncodingName
from caskd.store.errors import UsageError

FormatName = Literal["distillkit", "dataset", "axolotl", "nemo-aligner", "maxtext"]


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Make a store of rows that another program captured; its teacher is not needed."""

    format: tyro.conf.Positional[FormatName]
    """Format of the source: distillkit (compressed Parquet, with compression_config.yaml), dataset
    (input_ids, target_token_ids and logprobs, or sampled_ids and sampled_counts), axolotl (messages
    and its logprobs column), nemo-aligner (JSONL with log_sum_exp_logits), or maxtext (ArrayRecord;
    tail unknown)."""

    source: tyro.conf.Positional[str]
    """File or folder of the source; of distillkit, the folder."""

    tokenizer: str
    """The teacher's tokenizer: a transformers folder, or a hub id."""

    teacher_name: str
    """Name of the teacher that the other program ran; the source does not record it."""

    store: str
    """Local directory of the store to create, or to complete."""

    response_from: Literal["all", "messages"] = "all"
    """Rows of a distillkit source, which does not record responses: all, or those of the replies in
    the conversations of --data, rendered by the tokenizer's chat template."""

    data: tuple[str, ...] = ()
    """With --response-from messages: the corpus that the source was made of."""

    pad_is_eos: bool = False
    """Keep the last row of an example that ends in the pad token, as the row of EOS; by default it
    is dropped. Only where both are one token."""

    encoding: EncodingName | None = None
    """Row encoding, as of caskd precompute: fitted2 (the default) rounds log-probabilities, mean KL
    at most 1e-5; exact keeps every bit of the source."""

    shard_rows: int = DEFAULT_SHARD_ROWS
    """Response tokens per shard. A stopped import loses at most one shard."""

    dry_run: bool = False
    """Read the source, print every derived number and stop; write nothing."""

    def __post_init__(self) -> None:
        own = {"--pad-is-eos": self.pad_is_eos, "--response-from messages": self.from_messages}
        for flag, given in own.items():
            if given and self.format != "distillkit":
                raise UsageError(
                    f"{flag}: is of distillkit sources; got {self.format}, which records its own "
                    f"responses; omit {flag.partition(' ')[0]}"
                )
        if self.from_messages != bool(self.data):
            raise UsageError(
                "--response-from messages and --data: only one was given; expected both or "
                "neither; pass both"
            )

    @property
    def from_messages(self) -> bool:
        """Whether replies are found in the conversations of `data`."""
        return self.response_from == "messages"
