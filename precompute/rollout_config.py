"""Options of `caskd rollout`."""

from dataclasses import dataclass
from typing import Literal

from caskd.store.corpus import Columns


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Let a large model write answers that a small one could have written: a corpus to train on."""

    rule: Literal["rsd"] = "rsd"
    """Which of the large model's tokens are kept. rsd (reverse speculative decoding): those to
    which the small model gives at least --p-th; else the small model's own token is taken."""
    p_th: float = 0.01
    """Least probability of a kept token under the small model. 0 keeps all; above 1 none."""
    model: str
    """Small model, the student that the answers are for: a folder or a hub id."""
    large: str
    """Large model, which proposes each token. It must share the vocabulary, the end-of-sequence
    ids and the chat template of --model."""
    data: tuple[str, ...]
    """Files with the prompts or conversations: JSONL, Parquet, Arrow or CSV. Responses that they
    have are not read."""
    out: str
    """JSONL corpus to write, in which each record has `finished`. Finished parts are kept in
    OUT.parts until all are done; rerun the same command to resume."""
    temperature: float | None = None
    """Draw tokens at this temperature; by default the likeliest one is taken. --p-th is compared
    with the small model's probability at temperature 1 in any case."""
    seed: int | None = None
    """With --temperature: seed of the draws (default: 0). They depend on the seed, the record and
    the place of the token only, not on --gamma or workers."""
    max_new_tokens: int | None = None
    """Tokens that an answer may have, its end included (default: 512)."""
    gamma: int = 5
    """Tokens that the small model drafts for one forward pass of the large one; the answers do not
    depend on it, up to rounding."""
    prompt_column: str = "prompt"
    """Column of the prompt."""
    response_column: str = "response"
    """Column to write the answer to, for prompts."""
    messages_column: str = "messages"
    """Column of the conversation, for data rendered by the chat template."""
    chat_template: str | None = None
    """File with a chat template (Jinja) to use instead of the models' own."""
    template_arguments: str | None = None
    """Arguments of the chat template, a JSON object such as {"enable_thinking": false}."""
    train_template_tokens: bool = False
    """As in the capture: the models write themselves what the template writes at the start of a
    reply, such as an empty think block."""
    on_bad_text: Literal["error", "replace"] = "error"
    """Policy for JSON text with half of a surrogate pair: stop, or write U+FFFD in its place."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto uses the format of the files."""
    device: str = "auto"
    """Device to run on: cpu, cuda, cuda:1; auto uses a GPU if there is one."""
    worker: int = 0
    """Index of this worker, from 0. Each worker answers its own part; the last one to finish joins
    the parts."""
    num_workers: int = 1
    """Number of workers that share the records; start all of them with otherwise equal flags."""

    @property
    def columns(self) -> Columns:
        """All column names."""
        return Columns(
            prompt=self.prompt_column,
            response=self.response_column,
            messages=self.messages_column,
        )
