"""Rows from which a router of tokens is fitted, and their labels (R2R, arXiv 2505.21600).

R2R lets both models continue a text after a difference, and a judge decides whether the difference
matters. Here the teacher's stored probabilities stand in for the judge.

Legend: N rows, H hidden, K largest logits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.eval.next_token.teacher_forcing import ForcedStudent, forced_tiles, open_forced
from caskd.eval.next_token.teacher_forcing import store_rows as read_store_rows
from caskd.eval.next_token.teacher_topk import choice_ratio, teacher_kept
from caskd.models.decoding import LoadedModel, RouterReader, router_reader
from caskd.store import StoreBatch, TeacherStore
from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]

ACCEPTABLE_RATIO = 0.3
"""A token is acceptable if the teacher gives it this share of its largest probability."""


@dataclass(frozen=True, eq=False)
class RouterRows:
    """The rows of a store that have a finite teacher, in the order of the examples."""

    reader: RouterReader
    hidden: Tensor
    """[N, H] in float32, on the CPU as all of these."""
    top: Tensor
    """[N, K] the student's largest logits."""
    tokens: Tensor
    """[N] its likeliest token."""
    right: FloatArray
    """[N] 1.0 where that token is the label."""
    choice_ratio: FloatArray
    """[N] the teacher's probability of that token over its largest; 1.0 for its own choice."""
    is_same: FloatArray
    """[N] 1.0 where that token is the teacher's choice."""
    teacher_right: FloatArray
    """[N] 1.0 where the teacher's choice is the label."""
    questions: npt.NDArray[np.int64]
    """[N] digests of the questions."""


_LABELS: Mapping[str, Callable[[RouterRows], FloatArray]] = {
    "identical": lambda rows: 1.0 - rows.is_same,
    "divergent": lambda rows: (1.0 - rows.is_same) * (rows.choice_ratio < ACCEPTABLE_RATIO),
    "gap": lambda rows: rows.teacher_right * (1.0 - rows.right),
    "acceptable": lambda rows: 1.0 - acceptable(rows.right, rows.choice_ratio),
}


def labels_of(name: str, rows: RouterRows) -> FloatArray:
    """1.0 [N] where the large model should choose the token, by the names of `--label`."""
    return _LABELS[name](rows)


def acceptable(right: FloatArray, ratio: FloatArray, least: float = ACCEPTABLE_RATIO) -> FloatArray:
    """1.0 [N] where the student's token is the label, or nearly as likely as the teacher's own."""
    return np.maximum(right, ratio >= least)


def router_rows(loaded: LoadedModel, store: TeacherStore, limit: int | None) -> RouterRows:
    """Read every row once, under teacher forcing.

    Raises:
        IdentityError: the student's vocabulary is not the store's.
        UsageError: the student cannot read the store, its store has no row, or its values are not
            finite.
    """
    teacher = read_store_rows(store, limit, f"--store {store.name}")
    forced = open_forced(loaded, store, limit)
    flag = f"--student {loaded.identity['name']}"
    reader = router_reader(loaded, int(forced.split.weight.shape[1]), flag)
    hidden = torch.empty(forced.num_rows, reader.sizes.hidden)
    top = torch.empty(forced.num_rows, reader.sizes.logits)
    tokens = torch.empty(forced.num_rows, dtype=torch.int64)
    facts = np.empty((4, forced.num_rows))
    for rows, batch in forced.batches():
        hidden[rows], top[rows], tokens[rows] = batch_inputs(forced, reader, batch)
        own, labels = tokens[rows].numpy(), batch.labels.astype(np.int64)
        ratio = choice_ratio(tokens[rows], *teacher_kept(batch)).numpy()
        same = own == batch.column("argmax")
        facts[:, rows] = (
            own == labels,
            np.where(same, 1.0, ratio),
            same,
            batch.column("num_kept") > 0,
        )
    finite = facts[3] > 0
    if not bool(torch.isfinite(hidden).all() and torch.isfinite(top).all()):
        raise UsageError(
            f"{flag}: its hidden states or logits are not finite; expected finite numbers; pass "
            "another student"
        )
    right, ratio, same, _ = facts[:, finite]
    return RouterRows(
        reader=reader,
        hidden=hidden[finite],
        top=top[finite],
        tokens=tokens[finite],
        right=right,
        choice_ratio=ratio,
        is_same=same,
        teacher_right=teacher.right,
        questions=teacher.question_digests,
    )


@torch.inference_mode()
def batch_inputs(
    forced: ForcedStudent, reader: RouterReader, batch: StoreBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of a router [n, H], [n, K], [n] for the rows of some examples, on the CPU."""
    tiles = [
        tuple(part.cpu() for part in reader.inputs(hidden, logits))
        for _, hidden, logits in forced_tiles(forced.split, batch, forced.groups)
    ]
    hidden, top, tokens = (torch.cat(parts) for parts in zip(*tiles, strict=True))
    return hidden, top, tokens
