"""Attacks on hostile stores that change values of an array."""

from collections.abc import Callable
from typing import Any

import numpy as np
from fault_hostile_stores import HostileStore

Attack = Callable[[HostileStore], None]


def value_attacks() -> dict[str, Attack]:
    """Values that no writer stores, by name of the attack."""

    def at(name: str, index: Any, value: Any) -> Attack:
        def change(values: np.ndarray) -> None:
            values[index] = value

        return lambda s: s.values(name, change)

    return {
        "token_start negative": at("token_start", 0, -(2**63)),
        "token_start far": at("token_start", 1, 2**62),
        "token_count negative": at("token_count", 0, -1),
        "token_count huge": at("token_count", 0, 2**31 - 1),
        "row_start outside": at("row_start", 0, 10**12),
        "row_start wraps": at("row_start", 0, 2**63 - 1),
        "row_start negative": at("row_start", 0, -5),
        "row_count huge": at("row_count", 0, 2**31 - 1),
        "rows overlap": at("row_start", 1, 0),
        "a task too far": at("task", 0, 65535),
        "a status too far": at("status", 0, 255),
        "vocab_offsets fall": at("vocab_offsets", 3, 0),
        "vocab_offsets negative": at("vocab_offsets", 0, -(2**62)),
        "vocab_offsets far": at("vocab_offsets", -1, 2**62),
        "id_order twice": at("id_order", 0, 1),
        "id_order far": at("id_order", 0, 2**32 - 1),
        "id codes far": at("topk_id_codes", (0, 0), 2**32 - 1),
        "id codes twice": at("topk_id_codes", 0, 3),
        "logit steps wrap": at("topk_logit_steps", 0, 65535),
        "num_kept far": at("num_kept", 0, 65535),
        "argmax far": at("argmax", 0, 2**32 - 1),
        "label_rank far": at("label_rank", 0, 2**32 - 1),
        "token ids far": at("token_ids", 0, 2**32 - 1),
        "is_response 7": at("is_response", 0, 7),
        "logsumexp NaN": at("logsumexp", 0, np.nan),
        "tail_mass negative": at("tail_mass", 0, -1e30),
        "label_logit infinite": at("label_logit", 0, np.inf),
        "exact: ids far": at("topk_ids", (0, 0), 2**32 - 1),
        "exact: ids twice": at("topk_ids", 0, 5),
        "exact: logits NaN": at("topk_logits", (0, 1), np.nan),
        "exact: logits rise": at("topk_logits", (0, 3), 1e30),
        "exact: num_kept far": at("num_kept", 0, 500),
        "fitted2: places far": at("topk_id_places", (0, 0), 2**32 - 1),
        "fitted2: places that lead out": at("topk_id_places", 0, 2**31),
        "fitted2: places of nothing": at("topk_id_places", slice(None), 0),
        "fitted2: a list too far": at("topk_id_list", 0, 255),
        "fitted2: lists far": at("topk_id_lists", (0, 0), 2**32 - 1),
        "fitted2: lists that wrap": at("topk_id_lists", 0, 2**32 - 7),
        "fitted2: common ids far": at("topk_id_common", (0, 0), 2**32 - 1),
        "fitted2: common ids twice": at("topk_id_common", 0, 1),
        "fitted2: argmax far": at("argmax", 0, 2**32 - 1),
        "fitted2: logit steps wrap": at("topk_logit_steps", 0, 65535),
        "fitted2: num_kept far": at("num_kept", 0, 65535),
        "fitted2: num_kept of another row": at("num_kept", 0, 1),
        "fitted2: tail steps below": at("tail_steps", 0, -(2**15)),
        "fitted2: tail steps above": at("tail_steps", 0, 2**15 - 1),
        "fitted2: label not finite": at("label_rest", 0, np.nan),
        "fitted2: label_rank far": at("label_rank", 0, 2**32 - 1),
        "fitted2: logsumexp infinite": at("logsumexp", 0, np.inf),
        "sampled: steps far": at("sampled_place_steps", (0, 0), 2**32 - 1),
        "sampled: steps that lead out": at("sampled_place_steps", 0, 29),
        "sampled: steps of nothing": at("sampled_place_steps", 0, 0),
        "sampled: counts far": at("sampled_place_counts", (0, 0), 65535),
        "sampled: counts of nothing": at("sampled_place_counts", 0, 0),
        "sampled: counts of one more": at("sampled_place_counts", (0, 0), 20),
        "sampled: num_kept far": at("num_kept", 0, 65535),
        "sampled: num_kept of another row": at("num_kept", 0, 20),
        "sampled: an order too far": at("sampled_id_order", 0, 9),
        "head: codes far": at("head_id_codes", (0, 0), 2**32 - 1),
        "head: codes of the draws": at("head_id_codes", 0, 29),
        "head: codes of nothing": at("head_id_codes", 0, 0),
        "head: logit steps wrap": at("head_logit_steps", 0, 65535),
        "head: num_head far": at("num_head", 0, 65535),
        "head: num_head of another row": at("num_head", 0, 1),
        "head: num_head beyond num_kept": at("num_head", 0, 23),
        "head: num_kept far": at("num_kept", 0, 65535),
        "head: num_kept of another row": at("num_kept", 0, 4),
        "head: steps far": at("sampled_place_steps", (0, 0), 2**32 - 1),
        "head: steps that lead out": at("sampled_place_steps", 0, 29),
        "head: counts of nothing": at("sampled_place_counts", 0, 0),
        "head: counts of one more": at("sampled_place_counts", (0, 0), 20),
        "head: an order too far": at("sampled_id_order", 0, 9),
        "head: drawn mass negative": at("drawn_mass", 0, -1e30),
        "head: drawn mass NaN": at("drawn_mass", 0, np.nan),
        "head: logsumexp infinite": at("logsumexp", 0, np.inf),
        "sampled: argmax far": at("argmax", 0, 2**32 - 1),
    }
