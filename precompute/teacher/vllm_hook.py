"""Inside vLLM's workers: caskd's own row fields, from the model's hidden states.

vLLM makes `RowCapture` a base of its worker class (`worker_extension_cls`). It hooks into
`GPUModelRunner._get_prompt_logprobs_dict`, which vLLM 0.32 calls after every forward pass with the
hidden states of all tokens of the pass. Prompts are split over passes and share them, in any order.

The head runs on the rows that were asked for only, a tile at a time: no [tokens, V] is ever held.

Legend: T tokens of a pass, R rows of an example, H hidden, V vocabulary.
"""

import platform
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caskd.models import peak_process_bytes
from caskd.models.engines import EngineWorker
from caskd.precompute.rows import Columns, Piece, Targets, pack, targets_from
from caskd.precompute.teacher.transformers_teacher import MIN_TILE_ROWS, SLICE_LOGITS, TILE_BYTES

KEY = "caskd"
"""Name of a request's entry in `SamplingParams.extra_args`."""
_USED = ("_get_prompt_logprobs_dict", "requests", "input_batch", "query_start_loc", "model")
"""Attributes of vLLM's model runner that are not its public API."""


def request_of(number: int, positions: Any, labels: Any, numbers: Any) -> dict[str, Any]:
    """What a request asks of the hook.

    Args:
        number: of the example in its batch.
        positions: [R] of the tokens behind which the rows are, ascending.
        labels: [R] the tokens that follow.
        numbers: [R, n] random numbers of each row.
    """
    return {
        KEY: {
            "number": number,
            "positions": np.asarray(positions, np.int32).tobytes(),
            "labels": np.asarray(labels, np.int64).tobytes(),
            "numbers": np.asarray(numbers, np.float64).tobytes(),
        }
    }


class RowHook:
    """Computes rows after each forward pass of a model runner, and keeps them until they are taken.

    Args:
        runner: vLLM's.
        sends: whether this worker's rows are sent. The others of a tensor-parallel group run their
            part of the head only.
    """

    def __init__(self, runner: Any, *, sends: bool) -> None:
        self.runner, self.sends = runner, sends
        self.real = runner._get_prompt_logprobs_dict
        self.pieces: list[Piece] = []
        self.targets: Targets | None = None
        self.num_columns = 0

    def __call__(self, hidden_states: Tensor, num_scheduled: Mapping[str, int]) -> Any:
        """Compute the rows of a pass over hidden states [T, H]."""
        for request_id, num_tokens in num_scheduled.items():
            request = self.runner.requests[request_id]
            asked = (getattr(request.sampling_params, "extra_args", None) or {}).get(KEY)
            if asked is not None:
                at = self.runner.input_batch.req_id_to_index[request_id]
                offset = int(self.runner.query_start_loc.np[at])
                own = hidden_states[offset : offset + num_tokens]
                self.capture(asked, own, int(request.num_computed_tokens))
        return self.real(hidden_states, num_scheduled)

    def capture(self, asked: Mapping[str, Any], hidden: Tensor, start: int) -> None:
        """Compute the rows of an example that a part of it has.

        Args:
            asked: from `request_of`.
            hidden: [T, H] of the part's tokens.
            start: position of its first token.
        """
        positions = np.frombuffer(asked["positions"], np.int32)
        labels = torch.from_numpy(np.frombuffer(asked["labels"], np.int64).copy())
        numbers = np.frombuffer(asked["numbers"], np.float64).reshape(len(positions), -1)
        draws = torch.from_numpy(numbers.copy())
        first, end = np.searchsorted(positions, [start, start + len(hidden)]).tolist()
        row_bytes = self.num_columns * hidden.element_size()
        tile = max(MIN_TILE_ROWS, TILE_BYTES[hidden.device.type] // row_bytes)
        for low in range(first, end, tile):
            rows = slice(low, min(low + tile, end))
            places = torch.from_numpy(positions[rows].astype(np.int64) - start).to(hidden.device)
            # All workers of a tensor-parallel group run the head together.
            product = self.runner.model.compute_logits(hidden[places])
            if self.sends:
                parts = list(self._columns(product, labels[rows], draws[rows]))
                columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                self.pieces.append((int(asked["number"]), low, pack(columns)))

    def _columns(self, product: Tensor, labels: Tensor, draws: Tensor) -> Iterator[Columns]:
        """Columns of logits [R, V], a slice of rows at a time."""
        assert self.targets is not None, "targets are set before rows are asked for"
        # vLLM's own columns may be padded further.
        logits = product[:, : self.num_columns]
        num_rows = max(1, SLICE_LOGITS[logits.device.type] // self.num_columns)
        for low in range(0, len(labels), num_rows):
            part = slice(low, low + num_rows)
            own = labels[part].to(logits.device), draws[part].to(logits.device)
            yield self.targets.columns(logits[part], *own)


class RowCapture(EngineWorker):
    """Methods that vLLM's workers get; the engine's owner calls them by name."""

    model_runner: Any
    rank: int
    device: Any
    _caskd_hook: RowHook | None = None

    def caskd_install(self, capture: dict[str, Any], num_columns: int) -> list[str]:
        """Hook into the model runner.

        Args:
            capture: fields of `identity.capture` that define the targets.
            num_columns: columns of the logits that count.

        Returns:
            Attributes that the runner lacks; nothing is hooked if there are any.
        """
        missing = [name for name in _USED if not hasattr(self.model_runner, name)]
        if missing:
            return missing
        if self._caskd_hook is None:
            self._caskd_hook = RowHook(self.model_runner, sends=self.rank == 0)
            self.model_runner._get_prompt_logprobs_dict = self._caskd_hook
        self._caskd_hook.targets = targets_from(capture)
        self._caskd_hook.num_columns = num_columns
        return []

    def caskd_rows(self) -> list[Piece]:
        """Take the rows that were computed since they were taken last."""
        assert self._caskd_hook is not None, "installed first"
        rows, self._caskd_hook.pieces = self._caskd_hook.pieces, []
        return rows

    def caskd_facts(self) -> dict[str, Any]:
        """Device, threads and peak memory of this worker."""
        on_gpu = torch.device(self.device).type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else platform.machine()
        return {
            "device": f"{'cuda' if on_gpu else 'cpu'} {name}",
            "num_threads": torch.get_num_threads(),
            "memory": [
                "gpu" if on_gpu else "process",
                torch.cuda.max_memory_allocated(self.device) if on_gpu else peak_process_bytes(),
            ],
        }
