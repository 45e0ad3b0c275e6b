"""A vLLM engine in this process: its model runner's passes over a tiny transformers model.

The runner has the attributes of vLLM 0.32 that caskd's hook uses, and schedules as vLLM does:
prompts are split over passes of `batch_tokens` tokens, and share them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from caskd.models.engines import EngineError, EngineOptions
from caskd.precompute.teacher import vllm_source
from caskd.precompute.teacher.vllm_hook import RowCapture


class FakeRunner:
    """The part of vLLM's `GPUModelRunner` that the hook sees."""

    def __init__(self, model: Any) -> None:
        model.requires_grad_(False)
        self.body, self.head = model.model, model.lm_head
        self.model = SimpleNamespace(compute_logits=self.compute_logits)
        self.requests: dict[str, Any] = {}
        self.input_batch = SimpleNamespace(req_id_to_index={})
        self.query_start_loc = SimpleNamespace(np=np.zeros(1, np.int32))
        self.head_rows: list[int] = []

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.head_rows.append(len(hidden))
        return self.head(hidden)

    def _get_prompt_logprobs_dict(self, hidden: torch.Tensor, scheduled: Mapping[str, int]) -> Any:
        return {}

    @torch.inference_mode()
    def run(
        self, prompts: Sequence[Sequence[int]], extras: Any, passes: Sequence[Mapping[int, int]]
    ) -> list[torch.Tensor]:
        """Run passes, each of which has some tokens of some prompts; the hidden states [T, H]."""
        hidden = [self.body(torch.tensor([list(p)])).last_hidden_state[0] for p in prompts]
        self.requests = {
            f"{n}-x": SimpleNamespace(
                num_computed_tokens=0,
                sampling_params=SimpleNamespace(extra_args=None if extras is None else extras[n]),
            )
            for n in range(len(prompts))
        }
        for scheduled in passes:
            self._pass({f"{n}-x": num for n, num in scheduled.items()}, hidden)
        return hidden

    def _pass(self, scheduled: dict[str, int], hidden: Sequence[torch.Tensor]) -> None:
        # A batch's rows have their own order, which is not that of the schedule.
        order = sorted(scheduled, reverse=True)
        self.input_batch.req_id_to_index = {name: n for n, name in enumerate(order)}
        lengths = [scheduled[name] for name in order]
        self.query_start_loc.np = np.cumsum([0, *lengths]).astype(np.int32)
        parts = []
        for name in order:
            begin = self.requests[name].num_computed_tokens
            parts.append(hidden[int(name.split("-")[0])][begin : begin + scheduled[name]])
        self._get_prompt_logprobs_dict(torch.cat(parts), scheduled)
        for name, num in scheduled.items():
            self.requests[name].num_computed_tokens += num


def passes_of(lengths: Sequence[int], batch_tokens: int) -> Iterator[dict[int, int]]:
    """Fill each pass with the prompts in their order, and split the one that does not fit."""
    left = list(lengths)
    while any(left):
        room, scheduled = batch_tokens, {}
        for number, tokens in enumerate(left):
            if tokens and room:
                scheduled[number] = min(tokens, room)
                room -= scheduled[number]
        for number, tokens in scheduled.items():
            left[number] -= tokens
        yield scheduled


class FakeEngine:
    """As `VllmEngine`, of as many workers as `tensor_parallel` says."""

    started: ClassVar[list["FakeEngine"]] = []
    version = "0.32.0"
    process_ids = ()
    fault: Callable[["FakeEngine", Sequence[Sequence[int]]], None] = staticmethod(lambda *_: None)
    """Called with the engine and its prompts; may raise."""

    def __init__(self, options: EngineOptions) -> None:
        self.options, self.closed = options, False
        model = AutoModelForCausalLM.from_pretrained(options.folder).eval()
        self.workers = [self._worker(model, rank) for rank in range(options.tensor_parallel)]
        self.started.append(self)

    def _worker(self, model: Any, rank: int) -> RowCapture:
        worker = RowCapture()
        worker.model_runner, worker.rank, worker.device = FakeRunner(model), rank, "cpu"
        return worker

    def call(self, method: str, *args: Any) -> list[Any]:
        return [getattr(worker, method)(*args) for worker in self.workers]

    def run(self, prompts: Any, *, extras: Any = None, cells: int | None = None) -> list[Any]:
        assert not self.closed
        type(self).fault(self, prompts)
        for prompt in prompts:
            if len(prompt) + 1 > self.options.max_length:
                raise EngineError(f"--backend vllm: a prompt of {len(prompt)} tokens is too long")
        passes = list(passes_of([len(p) for p in prompts], self.options.batch_tokens))
        for worker in self.workers:
            hidden = worker.model_runner.run(prompts, extras, passes)
        if cells is None:
            return [[] for _ in prompts]
        head = self.workers[0].model_runner.head
        return [_cells(head(h), p, cells) for h, p in zip(hidden, prompts, strict=True)]

    def close(self) -> None:
        self.closed = True


@torch.inference_mode()
def _cells(logits: torch.Tensor, prompt: Sequence[int], k: int) -> list[dict[int, float]]:
    rows = logits.float().log_softmax(dim=-1)
    return [
        {label: row[label].item(), **dict(zip(ids.tolist(), top.tolist(), strict=True))}
        for label, row in zip(prompt[1:], rows, strict=False)
        for top, ids in [row.topk(k)]
    ]


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    """Captures with `--backend vllm` run a `FakeEngine` of their own."""
    engine = type("Engine", (FakeEngine,), {"started": []})
    monkeypatch.setattr(vllm_source, "VllmEngine", engine)
    monkeypatch.setattr(vllm_source, "vllm_version", lambda: engine.version)
    return engine
