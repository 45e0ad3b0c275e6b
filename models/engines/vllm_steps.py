"""vLLM's logits processor that records answers; vLLM's workers import this module by its name."""

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from caskd.models.engines.vllm_worker import RECORDER


class StepProcessor(LogitsProcessor):  # type: ignore[misc]  # vllm may be absent
    """Hands each step's logits to the recorder."""

    def __init__(self, *_: Any) -> None:
        """One of each worker; `RECORDER` holds its state."""

    def is_argmax_invariant(self) -> bool:
        """False: vLLM leaves out the others where it takes the likeliest token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow which request has which row."""
        process_dict_updates(
            RECORDER.rows,
            batch_update,
            lambda parameters, _, output_ids: RECORDER.answer(parameters.extra_args, output_ids),
        )

    def apply(self, logits: Tensor) -> Tensor:
        """Record a step."""
        return RECORDER.step(logits)
