"""A teacher that is divided over the ranks of one worker, as rank 0 uses it."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from caskd.precompute.teacher.rank_group import BATCH, RankGroup, packed
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.store.write import ShardExample


class DividedTeacher:
    """Rank 0's part of a teacher: each batch goes to all ranks, which compute it together.

    A failure inside a batch leaves the ranks at different places, so that it ends the worker.
    """

    def __init__(self, own: TransformersTeacher, group: RankGroup) -> None:
        self.own, self.group = own, group

    def rows(self, examples: Sequence[ShardExample]) -> Mapping[str, NDArray[Any]]:
        """Compute the row fields of all examples, concatenated in their order.

        Raises:
            LostTeacherError: a rank failed or ended.
        """
        try:
            self.group.in_step = True
            self.group.send(BATCH, packed(examples))
            fields = self.own.rows(examples)
            self.group.in_step = False
        except Exception as error:
            raise self.group.lost(error) from error
        return fields

    def describe(self) -> dict[str, Any]:
        """Describe rank 0: package versions, device and threads."""
        return self.own.describe()

    def peak_memory(self) -> tuple[str, int]:
        """Peak bytes so far of rank 0's GPU, or of its process; the other ranks hold as much."""
        return self.own.peak_memory()

    def close(self) -> None:
        """Restore the kernels that torch used before."""
        self.own.close()
