"""Checks of the meaning of rows, for each kind of rows and any encoding.

Legend: N rows, k cells per row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from caskd.store.cells import kept_cells
from caskd.store.format import HEAD_SAMPLED, SAMPLED, TOPK, Array, StoreSpec
from caskd.store.read import StoreBatch

_ABOVE_IDS = 1 << 40


def row_problems(batch: StoreBatch, spec: StoreSpec) -> list[str]:
    """The contradictions between the fields of rows, in words; empty for valid rows.

    Args:
        batch: rows with every field.
        spec: of their store.
    """
    return _PROBLEMS_OF_KIND[spec.kind](batch, spec)


def _topk_problems(batch: StoreBatch, spec: StoreSpec) -> list[str]:
    """The contradictions in rows of a topk store.

    Rounded logits may tie where the teacher's did not, so any order of ids is valid in such a tie,
    and the kept probabilities add up only approximately.
    """
    exact, known_as = spec.row_encoding.exact, spec.capture_fields
    ids, logits, kept, tail, logsumexp, argmax, rank = map(
        batch.column,
        ("topk_ids", "topk_logits", "num_kept", "tail_mass", "logsumexp", "argmax", "label_rank"),
    )
    known = kept > 0
    cells = kept_cells(kept, ids.shape[1])
    pairs = cells[:, 1:]
    with np.errstate(all="ignore"):  # padding cells are -inf
        falling = logits[:, :-1] > logits[:, 1:]
        tied = logits[:, :-1] == logits[:, 1:]
        if exact:
            tied &= ids[:, :-1] < ids[:, 1:]
        mass = np.where(cells, np.exp(logits.astype(np.float64) - logsumexp[:, None]), 0.0)
        total = mass.sum(axis=1) + tail
    in_order = np.sort(np.where(cells, ids, _ABOVE_IDS - np.arange(ids.shape[1])), axis=1)
    label_logit = _known_label(batch, ids, cells, known_as["label"])
    values = np.stack([logsumexp, label_logit, tail, np.where(known, total, 0)])
    off = total - 1 if known_as["tail"] == "unknown" else np.abs(total - 1)
    checks = {
        "a value is not finite": ~np.isfinite(values).all(axis=0),
        "tail_mass is not between 0 and 1": ~((tail >= 0) & (tail <= 1)),
        "topk_ids contain an id twice": (in_order[:, 1:] == in_order[:, :-1]).any(axis=1),
        "topk_ids are not in rank order": (pairs & ~(falling | tied)).any(axis=1),
        "the kept mass and tail_mass do not add up to 1": off > (1e-3 if exact else 0.05),
    }
    if known_as["argmax"] != "unknown":
        checks |= {"argmax is not topk_ids[0]": argmax != ids[:, 0], **_rank_problem(batch)}
    if known_as["rank"] == "capped":
        checks["label_rank is larger than top_k"] = rank > spec.num_cells
    if known_as["values"] == "log-probs":
        checks["logsumexp is not 0 in a store of log-probs"] = logsumexp != 0
    return [text for text, bad in checks.items() if (bad & known).any()]


def _rank_problem(batch: StoreBatch) -> dict[str, Any]:
    wrong = (batch.column("label_rank") == 0) != (batch.column("argmax") == batch.labels)
    return {"label_rank is 0 for a label that is not the argmax, or the reverse": wrong}


def _known_label(batch: StoreBatch, ids: Array, cells: Array, label: str) -> Array:
    """`label_logit` [N], 0 where a store need not know it: outside of the kept cells."""
    logit = batch.column("label_logit")
    if label == "exact":
        return logit
    inside = (cells & (ids == batch.labels[:, None])).any(axis=1)
    return np.where(inside | ~np.isneginf(logit), logit, 0)


def _head_sampled_problems(batch: StoreBatch, spec: StoreSpec) -> list[str]:
    """The contradictions in rows of draws with a head."""
    exact = spec.row_encoding.exact
    ids, counts, logits, kept, num_head, drawn, logsumexp, argmax = map(
        batch.column,
        (
            "sampled_ids", "sampled_counts", "head_logits", "num_kept", "num_head", "drawn_mass",
            "logsumexp", "argmax",
        ),
    )  # fmt: skip
    known, cells = kept > 0, kept_cells(kept, ids.shape[1])
    head = kept_cells(num_head, ids.shape[1])
    pairs, both_drawn = head[:, 1:], cells[:, 1:] & ~head[:, :-1]
    with np.errstate(all="ignore"):  # cells beyond the head are -inf
        falling = logits[:, :-1] > logits[:, 1:]
        tied = logits[:, :-1] == logits[:, 1:]
        mass = np.where(head, np.exp(logits.astype(np.float64) - logsumexp[:, None]), 0.0)
        total = np.where(known, mass.sum(axis=1) + drawn, 0)
    fewer = (counts[:, :-1] > counts[:, 1:]) | (
        (counts[:, :-1] == counts[:, 1:]) & (ids[:, :-1] < ids[:, 1:])
    )
    by_id = np.sort(np.where(cells, ids, -1 - np.arange(ids.shape[1])), axis=1)
    if exact:
        tied &= ids[:, :-1] < ids[:, 1:]
    checks = {
        "a value is not finite": ~np.isfinite(
            np.stack([logsumexp, batch.column("label_logit"), drawn, total])
        ).all(axis=0),
        "drawn_mass is not between 0 and 1": ~((drawn >= 0) & (drawn <= 1)),
        "num_head is not the head of the capture": num_head != spec.identity["capture"]["head"],
        "sampled_counts do not add up to num_samples": counts.sum(axis=1, dtype=np.int64)
        != spec.num_samples,
        "sampled_counts are not positive in exactly the drawn cells": (
            (counts > 0) != (cells & ~head)
        ).any(axis=1),
        "sampled_ids contain an id twice": (by_id[:, 1:] == by_id[:, :-1]).any(axis=1),
        "the head's ids are not in rank order": (pairs & ~(falling | tied)).any(axis=1),
        "the drawn ids are not in order of count, then id": (both_drawn & ~fewer).any(axis=1),
        "the head's mass and drawn_mass do not add up to 1": np.abs(total - 1)
        > (1e-3 if exact else 0.05),
        "argmax is not the first id of the head": argmax != ids[:, 0],
        **_rank_problem(batch),
    }
    wrong = [text for text, bad in checks.items() if (bad & known).any()]
    return wrong or _drawn_label_problem(batch, spec.num_samples)


def _drawn_label_problem(batch: StoreBatch, num_samples: int) -> list[str]:
    """`_label_problem` of the labels outside of the head, which draws of the rest may hit."""
    ids, labels = batch.column("sampled_ids"), batch.labels
    head = kept_cells(batch.column("num_head"), ids.shape[1])
    outside = (batch.column("num_kept") > 0) & ~(head & (ids == labels[:, None])).any(axis=1)
    drawn = batch.column("drawn_mass")[outside].astype(np.float64)
    log_p = (batch.column("label_logit").astype(np.float64) - batch.column("logsumexp"))[outside]
    p = np.minimum(np.exp(np.minimum(log_p, 0)) / np.maximum(drawn, 1e-30), 1)
    hits = ids[outside] == labels[outside, None]
    times = (batch.column("sampled_counts")[outside] * hits).sum(axis=1, dtype=np.int64)
    return _unlikely(p, times, num_samples)


_CHANCE = 28.3  # nats: a valid store fails the test of its counts once in 10^12 times


def _sampled_problems(batch: StoreBatch, spec: StoreSpec) -> list[str]:
    """The contradictions in rows of a sampled store."""
    num_samples = spec.num_samples
    known_as = spec.capture_fields
    ids, counts, kept = map(batch.column, ("sampled_ids", "sampled_counts", "num_kept"))
    known, cells = kept > 0, kept_cells(kept, ids.shape[1])
    falling = counts[:, :-1] > counts[:, 1:]
    tied = (counts[:, :-1] == counts[:, 1:]) & (ids[:, :-1] < ids[:, 1:])
    by_id = np.sort(np.where(cells, ids, -1 - np.arange(ids.shape[1])), axis=1)
    label_logit = _known_label(batch, ids, cells, known_as["label"])
    finite = np.isfinite(batch.column("logsumexp")) & np.isfinite(label_logit)
    checks = {
        "a value is not finite": ~finite,
        "sampled_counts do not add up to num_samples": counts.sum(axis=1, dtype=np.int64)
        != num_samples,
        "sampled_counts are not positive in exactly the first num_kept cells": (
            (counts > 0) != cells
        ).any(axis=1),
        "sampled_ids contain an id twice": (by_id[:, 1:] == by_id[:, :-1]).any(axis=1),
        "sampled_ids are not in order of count, then id": (cells[:, 1:] & ~(falling | tied)).any(
            axis=1
        ),
    }
    if known_as["argmax"] != "unknown":
        checks |= _rank_problem(batch)
    wrong = [text for text, bad in checks.items() if (bad & known).any()]
    return wrong or (_label_problem(batch, num_samples) if known_as["label"] == "exact" else [])


def _label_problem(batch: StoreBatch, num_samples: int) -> list[str]:
    """Check that the labels were drawn about as often as their probabilities predict.

    That ties the draws to the other fields and finds rows that are shifted by one. Likely labels
    have larger weights, because they are more informative. By Bernstein's inequality, the deviation
    of a valid store exceeds about sqrt(2 v c) + c / 3 with probability exp(-c); v is the variance.
    """
    known = batch.column("num_kept") > 0
    log_p = batch.column("label_logit").astype(np.float64) - batch.column("logsumexp")
    p = np.exp(np.minimum(log_p[known], 0))
    hits = batch.column("sampled_ids")[known] == batch.labels[known, None]
    drawn = (batch.column("sampled_counts")[known] * hits).sum(axis=1, dtype=np.int64)
    return _unlikely(p, drawn, num_samples)


def _unlikely(p: Array, drawn: Array, num_samples: int) -> list[str]:
    """The problem of labels of probability p [n] that were `drawn` [n] times, if it is one."""
    variance = float((num_samples * p * (1 - p) * p**2).sum())
    allowed = np.sqrt(2 * variance * _CHANCE + (_CHANCE / 3) ** 2) + _CHANCE / 3
    # The rounding errors of float32 probabilities may all have the same sign.
    if abs((p * (drawn - num_samples * p)).sum()) > allowed + 1e-5 * num_samples * p.sum():
        return ["the labels were not drawn as often as their probabilities predict"]
    return []


_PROBLEMS_OF_KIND: Mapping[str, Callable[[StoreBatch, StoreSpec], list[str]]] = {
    TOPK.name: _topk_problems,
    SAMPLED.name: _sampled_problems,
    HEAD_SAMPLED.name: _head_sampled_problems,
}
