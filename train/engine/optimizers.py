"""The student's optimizers, from torch and transformers.

DeepSpeed's own optimizers are compiled at their first use, which takes minutes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from caskd.train.config import OptimizerName


class _SkipNonFinite:
    """Mixin that skips a step whose gradient is not finite.

    It is for stage 0 in float32, where DeepSpeed does not check the gradient. DeepSpeed's engine
    reads `overflow`, as it does of its own optimizers.
    """

    overflow = False
    param_groups: list[dict[str, Any]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        self.overflow = not bool(torch.isfinite(torch.nn.utils.get_total_norm(grads)))
        if not self.overflow:
            super().step(closure)  # type: ignore[misc]


class _SkippingAdamW(_SkipNonFinite, torch.optim.AdamW):  # type: ignore[misc]
    pass


def make_optimizer(
    name: OptimizerName, module: nn.Module, *, weight_decay: float, skip_non_finite: bool
) -> torch.optim.Optimizer:
    """AdamW, or Adafactor without its own schedule; set the learning rate before each step.

    Args:
        weight_decay: of matrices; vectors (norms, biases) are not decayed.
        skip_non_finite: whether the optimizer itself must skip gradients that are not finite.
    """
    groups = _groups(module, weight_decay)
    if name == "adafactor":
        return _adafactor(groups, skip_non_finite=skip_non_finite)
    adamw = _SkippingAdamW if skip_non_finite else torch.optim.AdamW
    return adamw(groups, lr=0.0)


def _adafactor(groups: list[dict[str, Any]], *, skip_non_finite: bool) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    class SkippingAdafactor(_SkipNonFinite, Adafactor):  # type: ignore[misc]
        pass

    adafactor = SkippingAdafactor if skip_non_finite else Adafactor
    optimizer: torch.optim.Optimizer = adafactor(
        groups, lr=0.0, scale_parameter=False, relative_step=False, warmup_init=False
    )
    return optimizer


def fresh_state(name: OptimizerName, num_updates: int, moments: dict[str, Tensor]) -> Any:
    """State of one parameter after that number of updates, in the optimizer's own form."""
    if name == "adafactor":
        return {"step": num_updates, "RMS": 0, **moments}  # RMS is written before it is read
    return {"step": torch.tensor(float(num_updates)), **moments}


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]
