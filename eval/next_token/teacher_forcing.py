"""A student's next-token predictions on a store's own tokens, beside the teacher's.

The body runs on whole examples, the head on rows alone and tile by tile, so that no
[rows, vocabulary] tensor is kept.

Legend: B examples of a batch, L padded length, N rows, V the student's own columns, H hidden.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.eval.next_token.teacher_topk import choice_ratio, draft_acceptance, teacher_kept
from caskd.models import (
    BatchGroups,
    SplitModel,
    check_split,
    check_vocabulary,
    hidden_in_groups,
    masked_groups,
    padded_batches,
)
from caskd.models.decoding import LoadedModel, RouterScorer, call_score, without_call
from caskd.store import StoreBatch, TeacherStore
from caskd.store.errors import UsageError
from caskd.store.format import TOPK
from caskd.store.io import progress

FloatArray = npt.NDArray[np.float64]

TILE_ROWS = 256
TOKEN_BUDGET = 4096
_TEACHER = ("topk_ids", "topk_logits", "logsumexp", "num_kept", "argmax")
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
    choice_ratio: FloatArray
    """The teacher's probability of the most likely token, over that of the teacher's own choice;
    0 outside of the stored top-k."""
    call_score: FloatArray
    """`call_score` of the CALL token, by which the rule `call` ranks; nan without the token."""
    routed: FloatArray
    """A router's probability that the teacher should choose; nan without a router."""


_BEST = [field.name for field in fields(ForcedRows)].index("best_logprob")


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
    question_digests: npt.NDArray[np.int64]
    """Names the question of each row in every store of the same tokenizer."""


def check_teacher(store: TeacherStore, flag: str) -> None:
    """Refuse a store from which the teacher's accuracy or its label log-probabilities are unknown.

    Args:
        store: to read.
        flag: how the user named it, for errors.

    Raises:
        UsageError: names the store's kind or its capture field.
    """
    if store.spec.kind != TOPK.name:
        raise UsageError(
            f"{flag}: a store of kind {store.spec.kind!r} does not hold the "
            f"teacher's most likely token; expected kind {TOPK.name!r}; pass a store that was "
            "precomputed without --sample"
        )
    known_as = store.spec.capture_fields
    for name, unusable in (("argmax", "unknown"), ("label", "within_topk")):
        if known_as[name] == unusable:
            raise UsageError(
                f"{flag}: capture.{name} is {unusable}; expected exact, "
                "because the teacher's accuracy and label log-probabilities are read from it; "
                "pass a store that caskd captured"
            )


def store_rows(store: TeacherStore, limit: int | None, flag: str | None = None) -> StoreRows:
    """The teacher's values of every row with a finite teacher.

    Args:
        store: with a top-k.
        limit: number of examples to read, from the first; all by default.
        flag: how the user named the store, for errors; as --next-token by default.

    Raises:
        UsageError: the store holds sampled tokens, from which the teacher's most likely token is
            not known, its capture lacks that token or some labels, or it holds no row.
    """
    flag = flag or f"--next-token {store.name}"
    check_teacher(store, flag)
    chosen = _with_rows(store, limit)
    if not chosen.size:
        raise UsageError(
            f"{flag}: no example has a row; expected at least one; pass a store with responses"
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
        question_digests=np.repeat(_question_digests(batch), counts)[known],
    )


def _first_asked(batch: StoreBatch) -> npt.NDArray[np.int64]:
    """[B] the first example with the same question."""
    first: dict[bytes, int] = {}
    found = np.array(batch.example_indices, dtype=np.int64)
    for place, question in enumerate(_asked(batch)):
        if question is not None:
            found[place] = first.setdefault(question, int(found[place]))
    return found


def _asked(batch: StoreBatch) -> Iterator[bytes | None]:
    """The tokens of each example's question; None for a question of at most one token."""
    for start, end in pairwise(batch.token_offsets.tolist()):
        asked = int(np.argmax(batch.is_response[start:end]))
        yield batch.token_ids[start : start + asked].tobytes() if asked > 1 else None


def _question_digests(batch: StoreBatch) -> npt.NDArray[np.int64]:
    """[B] first 8 bytes of sha256 of each question; of the whole example if it has no question."""
    wholes = (batch.token_ids[a:b].tobytes() for a, b in pairwise(batch.token_offsets.tolist()))
    read = [hashlib.sha256(q or whole) for q, whole in zip(_asked(batch), wholes, strict=True)]
    return np.array([int.from_bytes(one.digest()[:8], "big", signed=True) for one in read])


def student_rows(
    loaded: LoadedModel, store: TeacherStore, limit: int | None, router: RouterScorer | None = None
) -> ForcedRows:
    """The student's values of the same rows.

    Raises:
        IdentityError: the student's vocabulary is not the store's.
        UsageError: an example is longer than the student takes, or its architecture is not
            supported.
    """
    forced = open_forced(loaded, store, limit)
    values = np.empty((len(fields(ForcedRows)), forced.num_rows))
    known = np.empty(forced.num_rows, dtype=bool)
    for rows, batch in forced.batches():
        values[:, rows] = row_values(forced, batch, loaded, router)
        known[rows] = batch.column("num_kept") > 0
    return ForcedRows(*values[:, known])


@dataclass(frozen=True, eq=False)
class ForcedStudent:
    """A student and the examples of a store that it reads."""

    split: SplitModel
    groups: BatchGroups
    store: TeacherStore
    chosen: npt.NDArray[np.int64]
    """Indices of the examples that have rows."""
    name: str

    @property
    def num_rows(self) -> int:
        """Rows of all examples."""
        return int(self.store.row_counts()[self.chosen].sum())

    def batches(self) -> Iterator[tuple[npt.NDArray[np.int64], StoreBatch]]:
        """The indices [n] of the rows of each batch, and the batch; examples of like length."""
        starts = np.concatenate(([0], np.cumsum(self.store.row_counts()[self.chosen])))
        lengths = self.store.token_counts()[self.chosen]
        with progress(self.name, int(starts[-1]), "rows") as shown:
            for indices in padded_batches(lengths, TOKEN_BUDGET):
                rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
                yield rows, self.store.read(self.chosen[indices], fields=_TEACHER)
                shown.advance(len(rows))


def open_forced(loaded: LoadedModel, store: TeacherStore, limit: int | None) -> ForcedStudent:
    """Check that a student can read the examples of a store.

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
    return ForcedStudent(split, groups, store, chosen, loaded.identity["name"])


@torch.inference_mode()
def row_values(
    forced: ForcedStudent,
    batch: StoreBatch,
    loaded: LoadedModel,
    router: RouterScorer | None = None,
) -> FloatArray:
    """Values [11, N] of the fields of `ForcedRows` for the rows of some examples."""
    device = forced.split.device
    labels = torch.from_numpy(batch.labels.astype(np.int64)).to(device)
    ids, kept = (part.to(device) for part in teacher_kept(batch))
    tiles = []
    for part, hidden, whole in forced_tiles(forced.split, batch, forced.groups):
        logits, call = _without_call(whole, loaded.call_id)
        values = _tile_values(logits, labels[part])
        bounds = draft_acceptance(logits, ids[part], kept[part])
        ratio = choice_ratio(logits.argmax(dim=-1), ids[part], kept[part])
        score = call_score(loaded.call_rule, call, values[_BEST])
        routed = torch.full_like(call, torch.nan) if router is None else router(hidden, whole)
        last = torch.stack((*bounds, call, ratio, score, routed)).to(values.dtype)
        tiles.append(torch.cat((values, last)).cpu())
    return np.asarray(torch.cat(tiles, dim=1).double().numpy())


def forced_tiles(
    split: SplitModel, batch: StoreBatch, groups: BatchGroups
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of some examples tile by tile: their slice, hidden states [n, H], logits [n, V]."""
    input_ids, mask = (tensor.to(split.device) for tensor in _padded(batch))
    hidden = hidden_in_groups(split, groups, input_ids, mask).flatten(0, 1)
    longest = input_ids.shape[1]
    example = np.repeat(np.arange(len(batch.example_indices)), np.diff(batch.row_offsets))
    positions = torch.from_numpy(example * longest + batch.logit_positions).to(hidden.device)
    for start in range(0, len(positions), TILE_ROWS):
        part = slice(start, start + TILE_ROWS)
        states = hidden[positions[part]]
        yield part, states, split.logits(states)


def _without_call(logits: Tensor, call_id: int | None) -> tuple[Tensor, Tensor]:
    """Logits [n, V] with -inf for the CALL token, and its log-odds [n]; nan without the token."""
    if call_id is None:
        return logits, torch.full_like(logits[:, 0], torch.nan)
    return without_call(logits, call_id)


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


def _padded(batch: StoreBatch) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, L], padded on the right."""
    lengths = np.diff(batch.token_offsets)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = batch.token_ids
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def _with_rows(store: TeacherStore, limit: int | None) -> npt.NDArray[np.int64]:
    return np.flatnonzero(store.row_counts()[:limit]).astype(np.int64)
