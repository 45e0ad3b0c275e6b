"""A teacher behind one or several URLs: token ids in, log-probabilities out, every answer checked.

Legend: N rows of a batch, k cells kept per row.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caskd.models import peak_process_bytes
from caskd.models.engines import LeastBusy, NonFiniteError, ServedModel
from caskd.precompute.rows import Fields, filler_rows, response_fields
from caskd.store.corpus import logit_positions
from caskd.store.write import ShardExample


class ServerTeacher:
    """Servers of one model, which share the examples of a batch.

    A batch's requests are under way together, up to `concurrency` at each URL. One example is one
    request, so that an example with NaN spoils no other.
    """

    def __init__(
        self, models: Sequence[ServedModel], *, top_k: int, min_mass: float, concurrency: int
    ) -> None:
        self.models, self.top_k, self.min_mass = models, top_k, min_mass
        self._servers = LeastBusy(models)
        self._threads = ThreadPoolExecutor(concurrency * len(models), "caskd-server")

    def describe(self) -> dict[str, Any]:
        """The servers' kind and version, not their URLs."""
        engines = " and ".join(sorted({model.engine for model in self.models}))
        return {"packages": {}, "device": f"server {engines}", "num_threads": len(self.models)}

    def peak_memory(self) -> tuple[str, int]:
        """Peak bytes of this process: those of the server are not known."""
        return "process", peak_process_bytes()

    def close(self) -> None:
        """End all requests."""
        for model in self.models:
            model.close()
        self._threads.shutdown(cancel_futures=True)

    def rows(self, examples: Sequence[ShardExample]) -> Mapping[str, NDArray[Any]]:
        """Ask for the row fields of all examples, concatenated in their order.

        Raises:
            IdentityError: another model answers.
            ServerError: a server does not answer.
            TeacherError: an answer is not about the example.
        """
        waiting = [self._threads.submit(self._example, example) for example in examples]
        try:
            parts = [future.result() for future in waiting]
        finally:
            for future in waiting:
                future.cancel()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _example(self, example: ShardExample) -> Fields:
        positions = logit_positions(example.is_response)
        # The token of the last row is a label: nothing behind it is asked for.
        tokens = example.token_ids[: positions[-1] + 2].tolist()
        first = int(positions[0]) + 1
        try:
            with self._servers.pick() as model:
                found = model.checked_score(tokens, first, self.top_k)
        except NonFiniteError:
            return filler_rows(example.row_count, self.top_k)
        own = positions + 1 - first  # rows of the response, among all from its first token on
        return response_fields(found, own, self.min_mass)
