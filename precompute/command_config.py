"""`caskd precompute`: a capture, or with `--sample-responses` the teacher's own answers."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from caskd.precompute.config import PrecomputeConfig

_NEEDED = tyro.conf.arg(help_behavior_hint="(required, unless --sample-responses is given)")
_TEACHER = tyro.conf.arg(help_behavior_hint="(required, unless answers come from --api chat)")


@dataclass(frozen=True, kw_only=True)
class PrecomputeCommand(PrecomputeConfig):
    """Run the teacher once over a corpus and store its top-k logits for every response token."""

    teacher: Annotated[str, _TEACHER] = ""
    """Teacher model: a transformers folder, or a hub id."""

    store: Annotated[str, _NEEDED] = ""
    """Local directory of the store to create, or to complete."""

    sample_responses: str | None = None
    """Instead of a store, write the teacher's own answers to the prompts: a JSONL corpus for a
    capture, in which each record has `finished`. Rerun the same command to resume."""

    temperature: float | None = None
    """With --sample-responses: draw tokens at this temperature; by default the likeliest one is
    taken."""

    seed: int | None = None
    """With --temperature: seed of the draws (default: 0). They depend on the seed and the record
    only, not on batches or workers."""

    max_new_tokens: int | None = None
    """With --sample-responses: tokens that an answer may have, its end included (default: 512)."""

    api: Literal["completions", "chat"] = "completions"
    """With --sample-responses and --backend server: /v1/completions, which gets token ids; or
    /v1/chat/completions, where the server renders messages itself and a prompt is one user turn."""
