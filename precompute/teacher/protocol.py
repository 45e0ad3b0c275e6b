"""The interface of a teacher backend: `TeacherSource` before loading, `Teacher` afterwards.

Planning, workers and the probe use these two protocols only, so that a store does not depend on how
its teacher is run. `find_teacher` in `factory.py` picks the backend.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from caskd.precompute.checkpoints import WeightBytes
from caskd.precompute.rows import Reduction
from caskd.store.format import StoreSpec
from caskd.store.write import ShardExample


class Teacher(Protocol):
    """A loaded teacher that computes row fields."""

    def rows(self, examples: Sequence[ShardExample]) -> Mapping[str, NDArray[Any]]:
        """Compute the row fields of all examples, concatenated in their order.

        N counts the response tokens of all examples; k is `spec.num_cells`. Logits are in nats; a
        teacher that knows only log-probabilities returns those, and its `capture()` has `values`
        `log-probs`. A row whose logits have NaN or Inf has `num_kept` 0.

        Returns:
            the fields of the store's kind of rows (`RowKind.cells` [N, k], `RowKind.columns` [N],
            in their dtypes); of top-k rows topk_ids uint32 and topk_logits float32 [N, k], by
            falling logit; num_kept uint16, logsumexp, label_logit and tail_mass float32, argmax and
            label_rank uint32, all [N].

        A teacher may return before it has computed them: reading a field then waits, so that the
        caller can hand in the next batch first.

        Raises:
            MemoryError: the batch is too large; a smaller one may fit.
        """

    def describe(self) -> dict[str, Any]:
        """Describe the environment of this teacher in JSON types, without host, user or path.

        Returns:
            `packages` (name to version), `device` (`cpu` or `cuda`, a space, the device's name) and
            `num_threads`.
        """

    def peak_memory(self) -> tuple[str, int]:
        """Whose memory is the fullest (`gpu` or `process`), and the most bytes held in it so far.

        It is that of the process which runs the model, not always that of the caller.
        """

    def close(self) -> None:
        """Release what the teacher holds; its process goes back to the state before loading."""


@runtime_checkable
class LocalTeacher(Teacher, Protocol):
    """A teacher whose whole logits are in this process, which can reduce them in other ways."""

    def rows_for(
        self, reduction: Reduction, examples: Sequence[ShardExample]
    ) -> Mapping[str, NDArray[Any]]:
        """`rows` reduced by `reduction`, which decides the fields and k, not by the store's own."""


class TeacherSource(Protocol):
    """A teacher whose weights are not loaded yet: all that a plan and an identity check need."""

    @property
    def name(self) -> str:
        """Last folder name, or hub id: never a path."""

    @property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer."""

    @property
    def num_ids(self) -> int:
        """Number of token ids that the teacher can read and predict."""

    @property
    def max_length(self) -> int | None:
        """Tokens that one example may have; None without a limit."""

    @property
    def weights(self) -> WeightBytes | None:
        """Memory that the weights take here; None where another process decides."""

    def identity(self) -> dict[str, Any]:
        """Fields of `identity.teacher` in store.json that need no running teacher."""

    def fingerprint(self) -> dict[str, Any] | None:
        """What recognises a running teacher that digests do not name; None where they do.

        It may start the teacher, so that it is asked for last.
        """

    def capture(self) -> Mapping[str, Any]:
        """Fields of `identity.capture` in store.json that the backend decides."""

    def load(self, spec: StoreSpec, *, gpu: int | None = None) -> Teacher:
        """Load the teacher for the rows of a planned store.

        Args:
            spec: the planned store.
            gpu: index of the GPU that the launcher assigned to this process, if it did.

        Raises:
            UsageError: the teacher does not load.
        """
