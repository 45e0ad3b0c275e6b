"""A teacher in a vLLM engine that this process owns.

Legend: N rows of a batch, k cells kept per row.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caskd.models.engines import (
    EngineError,
    NonFiniteError,
    PromptRows,
    VllmEngine,
    ordered_rows,
)
from caskd.precompute.rows import (
    Fields,
    TopKTargets,
    assembled,
    filler_rows,
    response_fields,
    targets_from,
)
from caskd.precompute.teacher.vllm_hook import request_of
from caskd.store.corpus import logit_positions, row_labels
from caskd.store.write import ShardExample

PACKAGES = ("torch", "transformers", "tokenizers")
TEST_CELLS = 8
TOLERANCE = {"float32": 1e-3}
"""Nats between the hook's rows and vLLM's own: of two head products over one hidden state."""
TOLERANCE_OF_HALVES = 0.1

Capture = Mapping[str, Any]
"""Fields of `identity.capture` that define targets."""


class LiveEngine:
    """An engine that starts when it is first used, and anew after it was dropped.

    Args:
        start: starts an engine.
        prompts: for the self-test of the hook.
        num_columns: columns of the model's logits.
        dtype: in which it computes.
        hooked: whether its workers compute rows.

    Attributes:
        recognise: called after each start but the first, before any row is used.
    """

    def __init__(
        self,
        start: Callable[[], VllmEngine],
        *,
        prompts: Sequence[Sequence[int]],
        num_columns: int,
        dtype: str,
        hooked: bool,
    ) -> None:
        self.start, self.prompts, self.hooked = start, prompts, hooked
        self.num_columns = num_columns
        self.tolerance = TOLERANCE.get(dtype, TOLERANCE_OF_HALVES)
        self.recognise: Callable[[], None] | None = None
        self._engine: VllmEngine | None = None
        self._installed: tuple[Capture, int] | None = None

    def get(self) -> VllmEngine:
        """The running engine.

        Raises:
            EngineError: it does not start, or its hook's rows are not those of vLLM.
            IdentityError: it computes another model than the store was planned with.
        """
        if self._engine is None:
            self._engine = self.start()
            try:
                if self.hooked:
                    self._test(self._engine)
                if self.recognise is not None:
                    self.recognise()
            except BaseException:
                self.drop()
                raise
        return self._engine

    def hook(self, capture: Capture, num_columns: int) -> VllmEngine:
        """The running engine, whose workers compute these targets."""
        engine = self.get()
        if self._installed != (capture, num_columns):
            for missing in engine.call("caskd_install", dict(capture), num_columns):
                if missing:
                    raise EngineError(
                        f"--backend vllm: its model runner has no {missing[0]}; expected that of a "
                        "tested release; run pip install -U 'caskd[vllm]', or capture from "
                        "vllm serve with --backend server"
                    )
            self._installed = capture, num_columns
        return engine

    def drop(self) -> None:
        """End the engine; the next use starts another one."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._installed = None

    def _test(self, engine: VllmEngine) -> None:
        """Compare the hook's rows with vLLM's own log-probabilities of the same passes.

        Raises:
            EngineError: they differ.
        """
        k = min(TEST_CELLS, self.num_columns)
        self.hook({"kind": "topk", "top_k": k, "min_mass": 1.0}, self.num_columns)
        length = len(self.prompts[0])
        extras = [
            request_of(number, np.arange(length - 1), prompt[1:], np.empty((length - 1, 0)))
            for number, prompt in enumerate(self.prompts)
        ]
        cells = engine.run(self.prompts, extras=extras, cells=k)
        columns = assembled(engine.call("caskd_rows")[0], [length - 1] * len(extras))
        public = [
            ordered_rows(rows, prompt[1:], k, self.num_columns)
            for rows, prompt in zip(cells, self.prompts, strict=True)
        ]
        distance = rows_distance(prompt_rows(TopKTargets(k, 1.0).stored(columns)), public)
        if not distance <= self.tolerance:
            raise EngineError(
                f"--backend vllm: its hook's rows are {distance:.2g} nats from vLLM's own prompt "
                f"log-probabilities; expected at most {self.tolerance:.2g}; capture from vllm "
                "serve with --backend server, and report it with the versions of vllm and torch"
            )


def prompt_rows(fields: Mapping[str, NDArray[Any]]) -> PromptRows:
    """Row fields as the log-probabilities of a prompt."""
    total = fields["logsumexp"]
    return PromptRows(
        fields["topk_ids"].astype(np.int64),
        fields["topk_logits"] - total[:, None],
        fields["label_logit"] - total,
        fields["label_rank"].astype(np.int64),
    )


def rows_distance(hooked: PromptRows, public: Sequence[PromptRows]) -> float:
    """Largest distance in nats between rows [N] and those of several prompts, one after another.

    Ids are not compared: which of several ids with equal values is listed differs.
    """
    labels = np.concatenate([rows.label_logprobs for rows in public])
    cells = np.concatenate([rows.logprobs for rows in public])
    if hooked.label_logprobs.shape != labels.shape or hooked.logprobs.shape != cells.shape:
        return np.inf
    with np.errstate(invalid="ignore"):
        apart = np.abs(hooked.label_logprobs - labels).max(), np.abs(hooked.logprobs - cells).max()
    return float(max(apart)) if np.isfinite(apart).all() else np.inf


class VllmTeacher:
    """A frozen model in an engine, for one kind of targets.

    Args:
        live: the engine; several teachers may share it.
        capture: fields of `identity.capture` that define the targets.
        num_ids: ids of the vocabulary that count.
    """

    def __init__(self, live: LiveEngine, capture: Capture, num_ids: int) -> None:
        self.live, self.capture, self.num_ids = live, capture, num_ids
        self.targets = targets_from(capture)

    def rows(self, examples: Sequence[ShardExample]) -> Mapping[str, NDArray[Any]]:
        """Compute the row fields of all examples, concatenated in their order.

        Raises:
            EngineError: the engine died; the next call starts another one.
            IdentityError: that one computes another model.
        """
        try:
            return self._hooked(examples) if self.live.hooked else self._public(examples)
        except EngineError:
            self.live.drop()
            raise

    def _hooked(self, examples: Sequence[ShardExample]) -> Fields:
        """Rows that the engine's workers computed from logits."""
        engine = self.live.hook(self.capture, self.num_ids)
        positions = [logit_positions(example.is_response) for example in examples]
        counts = [len(own) for own in positions]
        numbers = np.split(self.targets.numbers(examples), np.cumsum(counts)[:-1])
        engine.run(
            # The token of the last row is a label only: the forward pass does not need it.
            [e.token_ids[: p[-1] + 1].tolist() for e, p in zip(examples, positions, strict=True)],
            extras=[
                request_of(n, positions[n], row_labels(e.token_ids, e.is_response), numbers[n])
                for n, e in enumerate(examples)
            ],
        )
        return self.targets.stored(assembled(engine.call("caskd_rows")[0], counts))

    def _public(self, examples: Sequence[ShardExample]) -> Fields:
        """Rows from the engine's own log-probabilities of prompts."""
        positions = [logit_positions(example.is_response) for example in examples]
        prompts = [
            e.token_ids[: p[-1] + 2].tolist() for e, p in zip(examples, positions, strict=True)
        ]
        k, min_mass = self.capture["top_k"], self.capture["min_mass"]
        parts = []
        for rows, prompt, own in zip(
            self.live.get().run(prompts, cells=k), prompts, positions, strict=True
        ):
            first = int(own[0])
            try:
                found = ordered_rows(
                    rows[first:], prompt[first + 1 :], k, self.num_ids, self.live.num_columns
                )
            except NonFiniteError:
                parts.append(filler_rows(len(own), k))
            else:
                parts.append(response_fields(found, own - first, min_mass))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def describe(self) -> dict[str, Any]:
        """Package versions, device and threads of the engine's workers."""
        workers = self.live.get().call("caskd_facts")
        return {
            "packages": {
                "vllm": self.live.get().version,
                **{package: version(package) for package in PACKAGES},
            },
            "device": workers[0]["device"],
            "num_threads": workers[0]["num_threads"],
        }

    def peak_memory(self) -> tuple[str, int]:
        """Peak bytes so far of the worker that holds the most."""
        found = [worker["memory"] for worker in self.live.get().call("caskd_facts")]
        return found[0][0], max(int(peak) for _, peak in found)

    def close(self) -> None:
        """End the engine."""
        self.live.drop()
