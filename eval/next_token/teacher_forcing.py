"""A student's next-token predictions on a store's own tokens, beside the teacher's.

The body runs on whole examples, the head on rows alone and tile by tile, so that no
[rows, vocabulary] tensor is kept.

Legend: B examples of a batch, L padded length, N rows, V the student's own columns, H hidden.
"""

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.models import (
    BatchGroups,
    SplitModel,
    check_split,
    check_vocabulary,
    hidden_in_groups,
    masked_groups,
    padded_batches,
)
from caskd.models.decoding import LoadedModel, acceptance_bounds
from caskd.store import StoreBatch, TeacherStore
from caskd.store.errors import UsageError
from caskd.store.format import TOPK
from caskd.store.io import progress

FloatArray = npt.NDArray[np.float64]

TILE_ROWS = 256
TOKEN_BUDGET = 4096
_TEACHER = ("topk_ids", "topk_logits", "logsumexp", "num_kept")
_FIELDS = ("argmax", "label_logit", "logsumexp", "num_kept")


@dataclass(frozen=True, eq=False)
class ForcedRows:
    """One model on the rows of a store: arrays [N], in the order of the examples."""

    right: FloatArray
    """1.0 where the most likely token is the label, else 0.0."""
    label_logprob: FloatArray
    best_logprob: FloatArray
    """Log-probability of the most likely token: known without the label, so rules may read it."""
    margin: FloatArray
    """`best_logprob` minus the log-probability of the second most likely token."""
    entropy: FloatArray
    """Entropy of the distribution over V, in nats."""
    acceptance_low: FloatArray
    """Least probability that the teacher accepts a token drawn from the model, as the draft model
    of speculative sampling (arXiv 2211.17192): 1 minus their total variation distance."""
    acceptance_high: FloatArray
    """The largest: the store holds the teacher's top-k, and bounds what lies outside of it."""
    call_log_odds: FloatArray
    """Logit of the CALL token less the log-sum-exp of all others, which no other field contains;
    nan where the model has no such token."""


@dataclass(frozen=True, eq=False)
class StoreRows:
    """The teacher on the rows of a store: arrays [N], in the order of the examples."""

    examples: npt.NDArray[np.int64]
    """Example that each row belongs to."""
    questions: npt.NDArray[np.int64]
    """First example with the same question as that example: the same tokens up to the first
    response token. An example of at most one such token is its own question."""
    tasks: npt.NDArray[np.int64]
    """Index of its task in the store's list of tasks."""
    right: FloatArray
    """1.0 where the teacher's most likely token is the label, else 0.0."""
    label_logprob: FloatArray


def check_teacher(store: TeacherStore) -> None:
    """Refuse a store from which the teacher's accuracy or its label log-probabilities are unknown.

    Raises:
        UsageError: names the store's kind or its capture field.
    """
    if store.spec.kind != TOPK.name:
        raise UsageError(
            f"--next-token {store.name}: a store of kind {store.spec.kind!r} does not hold the "
            f"teacher's most likely token; expected kind {TOPK.name!r}; pass a store that was "
            "precomputed without --sample"
        )
    known_as = store.spec.capture_fields
    for name, unusable in (("argmax", "unknown"), ("label", "within_topk")):
        if known_as[name] == unusable:
            raise UsageError(
                f"--next-token {store.name}: capture.{name} is {unusable}; expected exact, "
                "because the teacher's accuracy and label log-probabilities are read from it; "
                "pass a store that caskd captured"
            )


def store_rows(store: TeacherStore, limit: int | None) -> StoreRows:
    """The teacher's values of every row with a finite teacher.

    Args:
        store: with a top-k.
        limit: number of examples to read, from the first; all by default.

    Raises:
        UsageError: the store holds sampled tokens, from which the teacher's most likely token is
            not known, its capture lacks that token or some labels, or it holds no row.
    """
    check_teacher(store)
    chosen = _with_rows(store, limit)
    if not chosen.size:
        raise UsageError(
            f"--next-token {store.name}: no example has a row; expected at least one; pass a "
            "store with responses"
        )
    batch = store.read(chosen, fields=_FIELDS)
    known = batch.column("num_kept") > 0  # 0: the teacher was not finite
    counts = np.diff(batch.row_offsets)
    examples = np.repeat(chosen, counts)[known]
    return StoreRows(
        examples=examples,
        questions=np.repeat(_first_asked(batch), counts)[known],
        tasks=store.index.task[examples].astype(np.int64),
        right=(batch.column("argmax") == batch.labels)[known].astype(np.float64),
        label_logprob=(batch.column("label_logit") - batch.column("logsumexp"))[known].astype(
            np.float64
        ),
    )


def _first_asked(batch: StoreBatch) -> npt.NDArray[np.int64]:
    """[B] the first example with the same question."""
    first: dict[bytes, int] = {}
    found = np.array(batch.example_indices, dtype=np.int64)
    for place, (start, end) in enumerate(pairwise(batch.token_offsets.tolist())):
        asked = int(np.argmax(batch.is_response[start:end]))
        if asked > 1:
            question = batch.token_ids[start : start + asked].tobytes()
            found[place] = first.setdefault(question, int(found[place]))
    return found


def student_rows(loaded: LoadedModel, store: TeacherStore, limit: int | None) -> ForcedRows:
    """The student's values of the same rows.

    Raises:
        IdentityError: the student's vocabulary is not the store's.
        UsageError: an example is longer than the student takes, or its architecture is not
            supported.
    """
    flag = f"--student {loaded.identity['name']}"
    check_vocabulary(loaded.tokenizer, store.spec, flag, loaded.call_id)
    chosen = _with_rows(store, limit)
    lengths = store.token_counts()[chosen]
    most = loaded.max_positions
    if most is not None and lengths.max() > most:
        raise UsageError(
            f"{flag}: takes at most {most:,} tokens, but example {chosen[lengths.argmax()]} has "
            f"{lengths.max():,}; expected a student that takes the store's longest example; pass "
            "another student, or another store"
        )
    split = SplitModel(loaded.model, flag)
    check_split(loaded.model, split)
    groups = masked_groups(split, flag)
    counts = store.row_counts()[chosen]
    starts = np.concatenate(([0], np.cumsum(counts)))
    values = np.empty((len(fields(ForcedRows)), starts[-1]))
    known = np.empty(starts[-1], dtype=bool)
    with progress(loaded.identity["name"], int(starts[-1]), "rows") as shown:
        for indices in padded_batches(lengths, TOKEN_BUDGET):
            batch = store.read(chosen[indices], fields=_TEACHER)
            rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
            values[:, rows] = row_values(split, batch, groups, loaded.call_id)
            known[rows] = batch.column("num_kept") > 0
            shown.advance(len(rows))
    return ForcedRows(*values[:, known])


@torch.inference_mode()
def row_values(
    split: SplitModel, batch: StoreBatch, groups: BatchGroups, call_id: int | None = None
) -> FloatArray:
    """Values [8, N] of the fields of `ForcedRows` for the rows of some examples."""
    input_ids, mask = (tensor.to(split.device) for tensor in _padded(batch))
    hidden = hidden_in_groups(split, groups, input_ids, mask).flatten(0, 1)
    longest = input_ids.shape[1]
    example = np.repeat(np.arange(len(batch.example_indices)), np.diff(batch.row_offsets))
    positions = torch.from_numpy(example * longest + batch.logit_positions).to(hidden.device)
    labels = torch.from_numpy(batch.labels.astype(np.int64)).to(hidden.device)
    ids, kept = (part.to(hidden.device) for part in _teacher_kept(batch))
    tiles = []
    for start in range(0, len(positions), TILE_ROWS):
        part = slice(start, start + TILE_ROWS)
        logits = split.logits(hidden[positions[part]])  # [n, V]
        logits, call = _without_call(logits, call_id)
        values = _tile_values(logits, labels[part])
        bounds = draft_acceptance(logits, ids[part], kept[part])
        tiles.append(torch.cat((values, torch.stack(bounds).to(values.dtype), call[None])).cpu())
    return np.asarray(torch.cat(tiles, dim=1).double().numpy())


def _without_call(logits: Tensor, call_id: int | None) -> tuple[Tensor, Tensor]:
    """Logits [n, V] with -inf for the CALL token, and its log-odds [n]; nan without the token."""
    if call_id is None:
        return logits, torch.full_like(logits[:, 0], torch.nan)
    at_call = logits[:, call_id].clone()
    others = logits.index_fill(1, torch.tensor([call_id], device=logits.device), -torch.inf)
    return others, at_call - others.logsumexp(dim=-1)


def _tile_values(logits: Tensor, labels: Tensor) -> Tensor:
    """Values [5, n] of the first fields of `ForcedRows`, from logits [n, V] and labels [n]."""
    best, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
    at_label = logits.gather(-1, labels[:, None])[:, 0]
    right = at_label == best
    if bool((best == second).any()):  # ties go to the lowest id, as in a store
        lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
        right &= ~((logits == best[:, None]) & lower).any(dim=-1)
    total = logits.logsumexp(dim=-1)
    entropy = torch.special.entr((logits - total[:, None]).exp()).sum(dim=-1)
    return torch.stack((right.float(), at_label - total, best - total, best - second, entropy))


def draft_acceptance(logits: Tensor, ids: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """`acceptance_bounds` [n] of a draft model with logits [n, V].

    Args:
        logits: [n, V].
        ids: [n, k] stored tokens; any where `kept` is 0.
        kept: [n, k] the teacher's probabilities of them; 0 where fewer are stored.
    """
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    return acceptance_bounds((logits.gather(-1, ids) - log_total).exp().double(), kept)


def _teacher_kept(batch: StoreBatch) -> tuple[Tensor, Tensor]:
    """The teacher's stored tokens [N, k] and their probabilities, 0 behind the last of a row."""
    logits = batch.column("topk_logits").astype(np.float64)
    stored = np.arange(logits.shape[1]) < batch.column("num_kept")[:, None]
    totals = batch.column("logsumexp").astype(np.float64)[:, None]
    kept = np.exp(np.where(stored, logits - totals, -np.inf))
    ids = np.where(stored, batch.column("topk_ids"), 0).astype(np.int64)
    return torch.from_numpy(ids), torch.from_numpy(kept)


def _padded(batch: StoreBatch) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, L], padded on the right."""
    lengths = np.diff(batch.token_offsets)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = batch.token_ids
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def _with_rows(store: TeacherStore, limit: int | None) -> npt.NDArray[np.int64]:
    return np.flatnonzero(store.row_counts()[:limit]).astype(np.int64)
