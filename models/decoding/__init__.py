"""Decoding: a model opened with its tokenizer, greedy answers of a batch, and token cascades."""

from caskd.models.decoding.acceptance import acceptance_bounds
from caskd.models.decoding.call_token import call_score, without_call
from caskd.models.decoding.greedy import (
    Answer,
    answer_end,
    decode_batch,
    hidden_index,
    step_figures,
)
from caskd.models.decoding.loaded_model import (
    LoadedModel,
    load_for_decoding,
    max_positions_of,
    model_identity,
)
from caskd.models.decoding.pair_checks import check_caches, check_pair
from caskd.models.decoding.responses import Sampling, drawn_tokens, respond
from caskd.models.decoding.sampled_tokens import (
    accept_or_redraw,
    draw,
    emit,
    target_distribution,
    uniforms_at,
)
from caskd.models.decoding.stop_texts import StopTexts, check_stop_texts
from caskd.models.decoding.token_cascade import ForcedTokens, TokenCascade, TokenCascadeAnswer
from caskd.models.decoding.token_router import (
    DESCRIPTION,
    WEIGHTS,
    RouterNetwork,
    RouterReader,
    RouterScorer,
    TokenRouter,
    open_router,
    router_reader,
    student_identity,
)
from caskd.models.decoding.token_rules import TOKEN_RULES

__all__ = [
    "DESCRIPTION",
    "TOKEN_RULES",
    "WEIGHTS",
    "Answer",
    "ForcedTokens",
    "LoadedModel",
    "RouterNetwork",
    "RouterReader",
    "RouterScorer",
    "Sampling",
    "StopTexts",
    "TokenCascade",
    "TokenCascadeAnswer",
    "TokenRouter",
    "accept_or_redraw",
    "acceptance_bounds",
    "answer_end",
    "call_score",
    "check_caches",
    "check_pair",
    "check_stop_texts",
    "decode_batch",
    "draw",
    "drawn_tokens",
    "emit",
    "hidden_index",
    "load_for_decoding",
    "max_positions_of",
    "model_identity",
    "open_router",
    "respond",
    "router_reader",
    "step_figures",
    "student_identity",
    "target_distribution",
    "uniforms_at",
    "without_call",
]
