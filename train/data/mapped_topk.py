"""The teacher's top-k in the ids of a student with another tokenizer: tokens of equal bytes.

Legend: R rows, k cells of each.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.train.data.order import IntArray

Floats = npt.NDArray[np.float64]

NO_ID = 1 << 40
"""In place of the student's id of a token that it does not have; larger than every id."""


@dataclass(frozen=True, eq=False)
class MappedTopK:
    """Teacher rows in the student's ids."""

    ids: IntArray
    """[R, k] distinct ids, ascending; cells from `num_kept` on are padding."""
    mass: Floats
    """[R, k] probabilities; 0 in the padding."""
    num_kept: IntArray
    """[R]."""
    tail_mass: Floats
    """[R] probability of all other tokens: the tail of the top-k, and its unmapped cells."""

    def take(self, rows: IntArray | npt.NDArray[np.bool_]) -> "MappedTopK":
        """Some of the rows."""
        return MappedTopK(
            self.ids[rows], self.mass[rows], self.num_kept[rows], self.tail_mass[rows]
        )


def shared_ids(
    teacher: tuple[Sequence[bytes], Collection[int]],
    student: tuple[Sequence[bytes], Collection[int]],
    *,
    last_choice: Collection[int],
    ends: Mapping[int, int],
) -> IntArray:
    """The student's id for each id of the teacher; NO_ID where the student has no such token.

    Text tokens match text tokens of equal bytes. Special tokens match special tokens of the same
    name. Of several ids of the student, the lowest serves.

    Args:
        teacher: bytes of each token, and the ids of special tokens.
        student: likewise.
        last_choice: ids of the student that serve only where no other has their bytes.
        ends: tokens that end a reply, of the teacher and of the student.
    """
    tokens, special = student
    known: dict[tuple[bytes, bool], int] = {}
    for id_ in sorted(range(len(tokens)), key=lambda id_: (id_ in last_choice, id_)):
        if tokens[id_]:
            known.setdefault((tokens[id_], id_ in special), id_)
    tokens, special = teacher
    found = np.array(
        [known.get((token, id_ in special), NO_ID) for id_, token in enumerate(tokens)], np.int64
    )
    for theirs, own in ends.items():
        found[theirs] = own
    return found


def map_topk(
    ids: npt.NDArray[np.uint32],
    log_mass: Floats,
    num_kept: npt.NDArray[np.integer],
    tail_mass: Floats,
    table: IntArray,
) -> MappedTopK:
    """Teacher rows in the student's ids. Cells that map to one id are added up.

    As in the ordinary loss, the cells are first scaled to 1 - tail_mass, because storage rounds.

    Args:
        ids: [R, k] of the teacher.
        log_mass: [R, k] log-probabilities, nats.
        num_kept: [R] number of the k cells that count; at least 1.
        tail_mass: [R] the teacher's probability outside its top-k.
        table: of `shared_ids`.
    """
    num_cells = ids.shape[1]
    valid = np.arange(num_cells) < num_kept[:, None]
    mass = np.where(valid, np.exp(np.where(valid, log_mass, 0)), 0)
    tail = np.clip(tail_mass, 0, 1)
    mass *= ((1 - tail) / mass.sum(1))[:, None]
    own = table[np.where(valid, ids, 0)]
    own = np.where(valid, own, NO_ID)
    order = np.argsort(own, axis=1, kind="stable")
    own, mass = np.take_along_axis(own, order, 1), np.take_along_axis(mass, order, 1)
    is_known = own != NO_ID
    starts = np.diff(own, axis=1, prepend=-1) != 0
    group = np.cumsum(starts, axis=1) - 1
    row = np.broadcast_to(np.arange(len(own))[:, None], own.shape)
    merged_ids, merged = np.zeros_like(own), np.zeros_like(mass)
    merged_ids[row[is_known], group[is_known]] = own[is_known]
    np.add.at(merged, (row[is_known], group[is_known]), mass[is_known])
    unmapped = np.where(is_known, 0, mass).sum(1)
    return MappedTopK(merged_ids, merged, (starts & is_known).sum(1), tail + unmapped)
