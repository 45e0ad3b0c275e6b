"""Export and restore weights and optimizer state of a DeepSpeed engine as whole tensors.

Whole tensors do not depend on ranks or stages. So a state saved with any number of ranks at any
ZeRO stage can be restored with any other. This module uses safe_get_* and safe_set_* of
`deepspeed.utils`, which `deepspeed_engine` passes in, and the private attributes that
`deepspeed_check` lists.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caskd.train.config import OptimizerName
from caskd.train.engine.optimizers import fresh_state

STEP = "step"
"""Name of the update count among the optimizer's tensors; the other names are KEY/PARAMETER."""


@dataclass(frozen=True, eq=False)
class EngineState:
    """The tensors of an engine. Every rank must make every call and exhaust every iterator.

    Attributes:
        engine: DeepSpeed's.
        model: the student in it.
        stage: ZeRO stage.
        optimizer_name: as given to `make_optimizer`.
        utils: `deepspeed.utils`.
        gathered: `deepspeed.zero.GatheredParameters`.
    """

    engine: Any
    model: Any
    stage: int
    optimizer_name: OptimizerName
    utils: Any
    gathered: Any

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole float32 value of every weight and saved buffer, on CPU."""
        masters = self._masters()
        for name, parameter in self.model.named_parameters():
            yield name, self._whole_weight(parameter, masters).detach().float().cpu()
        saved = self.model.state_dict().keys()
        yield from ((n, b.cpu()) for n, b in self.model.named_buffers() if n in saved)

    def optimizer(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the optimizer, whole, on CPU; nothing before the first update."""
        state = self._inner().state
        if not state:
            return
        any_state = next(iter(state.values()))
        yield STEP, torch.tensor(float(any_state[STEP]))
        if self.stage == 0:
            masters = self._masters()
            for name, parameter in self._trained():
                for key, value in _moments(state[masters.get(parameter, parameter)]).items():
                    yield f"{key}/{name}", value.cpu()
            return
        self._link_moments()
        for name, parameter in self._trained():
            for key in _moments(any_state):
                value = self.utils.safe_get_full_optimizer_state(parameter, key)
                yield f"{key}/{name}", value.cpu()

    @torch.no_grad()
    def restore_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Set the float32 masters of a module that was loaded with these weights."""
        masters = self._masters()
        for name, parameter in self._trained():
            if parameter in masters:
                masters[parameter].copy_(weights[name])
            elif self.stage:
                self._set(parameter, weights[name])

    @torch.no_grad()
    def restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the tensors of `optimizer` into an optimizer that has made no update."""
        num_updates = int(tensors[STEP])
        keys = sorted({name.split("/", 1)[0] for name in tensors} - {STEP})
        state = self._inner().state
        if self.stage == 0:
            masters = self._masters()
            for name, parameter in self._trained():
                owner = masters.get(parameter, parameter)
                present = (key for key in keys if f"{key}/{name}" in tensors)
                moments = {key: tensors[f"{key}/{name}"].to(owner.device) for key in present}
                state[owner] = fresh_state(self.optimizer_name, num_updates, moments)
            return
        for flat in self._flat_masters():
            moments = {key: torch.zeros_like(flat) for key in keys}
            state[flat] = fresh_state(self.optimizer_name, num_updates, moments)
        self._link_moments()
        for name, parameter in self._trained():
            for key in keys:
                self._set(parameter, tensors[f"{key}/{name}"], key)

    def _whole_weight(self, parameter: Tensor, masters: Mapping[Tensor, Tensor]) -> Tensor:
        if parameter in masters:
            return masters[parameter]
        if parameter.requires_grad:
            value: Tensor | None = self.utils.safe_get_full_fp32_param(parameter)
            return parameter if value is None else value  # stage 0 in float32 has no masters
        if self.stage == 3:
            with self.gathered([parameter]):
                return parameter.detach().clone()
        return parameter

    def _set(self, parameter: Any, value: Tensor, key: str | None = None) -> None:
        if self.stage < 3:
            if key is None:
                self.utils.safe_set_full_fp32_param(parameter, value)
            else:
                self.utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # The full setters of stage 3 fail if a weight's size is no multiple of the ranks. The local
        # ones take this rank's part, padded to the common size.
        size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
        part = value.new_zeros(size)
        mine = value.flatten()[rank * size : (rank + 1) * size]
        part[: len(mine)] = mine
        if key is None:
            self.utils.safe_set_local_fp32_param(parameter, part)
        else:
            self.utils.safe_set_local_optimizer_state(parameter, part, key)

    def _trained(self) -> Iterator[tuple[str, Any]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def _inner(self) -> Any:
        """The torch optimizer, inside DeepSpeed's or alone."""
        return getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)

    def _masters(self) -> dict[Tensor, Tensor]:
        """float32 masters by parameter, where stage 0 trains in bfloat16."""
        optimizer = self.engine.optimizer
        groups = getattr(optimizer, "fp32_groups", []) if self.stage == 0 else []
        pairs = zip(getattr(optimizer, "fp16_groups", []), groups, strict=False)
        return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}

    def _flat_masters(self) -> list[Tensor]:
        """The parameters of the torch optimizer of stages 1 to 3 on this rank."""
        if self.stage == 3:  # there the optimizer gets one group at a time
            flat: list[Tensor] = self.engine.optimizer.fp32_partitioned_groups_flat
            return flat
        return [p for group in self._inner().param_groups for p in group["params"]]

    def _link_moments(self) -> None:
        """Link the current state to the getters of stages 1 and 2.

        DeepSpeed links it only once, after the first group's first update, when the other groups
        have no state yet.
        """
        if self.stage < 3:
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()


def _moments(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The moments of one parameter: the tensors of its state that are not scalars."""
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.ndim > 0}
