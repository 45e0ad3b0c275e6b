"""The optimizers of a student, made from torch's and transformers' own.

None is DeepSpeed's: those are compiled at their first use, for minutes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from caskd.train.config import OptimizerName


class _SkipNonFinite:
    """Leaves out a step whose gradient is not finite.

    For stage 0 in float32, where no optimizer of DeepSpeed's checks the gradient. The engine reads
    `overflow`, as it does of its own optimizers.
    """

    overflow = False
    param_groups: list[dict[str, Any]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        self.overflow = not bool(torch.isfinite(torch.nn.utils.get_total_norm(grads)))
        if not self.overflow:
            super().step(closure)  # type: ignore[misc]


def make_optimizer(
    name: OptimizerName, module: nn.Module, *, weight_decay: float, skip_non_finite: bool
) -> torch.optim.Optimizer:
    """AdamW, or Adafactor with a learning rate of its caller's; the rate is set at each step.

    Args:
        weight_decay: of matrices; vectors (norms, biases) are not decayed.
        skip_non_finite: whether it has to look at the gradient itself.
    """
    base: Any = torch.optim.AdamW
    options: dict[str, Any] = {}
    if name == "adafactor":
        from transformers.optimization import Adafactor

        base = Adafactor
        options = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    kind = type(f"Skipping{base.__name__}", (_SkipNonFinite, base), {}) if skip_non_finite else base
    optimizer: torch.optim.Optimizer = kind(_groups(module, weight_decay), lr=0.0, **options)
    return optimizer


def fresh_state(name: OptimizerName, num_updates: int, moments: dict[str, Tensor]) -> Any:
    """The state of one parameter after so many updates, as the optimizer itself keeps it."""
    if name == "adafactor":
        return {"step": num_updates, "RMS": 0, **moments}  # RMS is written before it is read
    return {"step": torch.tensor(float(num_updates)), **moments}


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]
