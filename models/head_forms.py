"""What a model does to the product of its head before it returns logits, found by trying.

A product of known numbers replaces that of the head in the model's own forward, and the logits that
come back name the operation. So no list of architectures is needed, and an operation that is none
of these is refused.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LARGE = (2.0**29, 2.0**30)
"""Products beyond every soft cap."""
_ONE = 1.0
_SMALL = 2.0**-6
_VALUES = [0.0, _ONE, _SMALL, *_LARGE, 0.1, 0.3, 1.7, 2.5, 7.3, 11.0, 29.0, 50.0, 301.0]
_STEPS = torch.tensor([*_VALUES, *(-value for value in _VALUES[1:])])
_TOLERANCE = 1e-6
"""Largest relative difference: two roundings of float32."""


@dataclass(frozen=True)
class HeadForm:
    """The operations of one model, in this order: divide, multiply, soft cap."""

    divisor: float | None = None
    multiplier: float | None = None
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""

    @property
    def is_identity(self) -> bool:
        """Whether the logits are the head's product itself."""
        return self == HeadForm()

    @property
    def scale(self) -> float | None:
        """The one factor that stands for `divisor` and `multiplier`."""
        if self.divisor is None:
            return self.multiplier
        return (1.0 if self.multiplier is None else self.multiplier) / self.divisor

    def logits(self, product: Tensor) -> Tensor:
        """Logits [N, V] of the head's product [N, V]."""
        if self.divisor is not None:
            product = product / self.divisor
        if self.multiplier is not None:
            product = product * self.multiplier
        if self.softcap is not None:
            product = torch.tanh(product / self.softcap) * self.softcap
        return product


def trial_product(shape: torch.Size) -> Tensor:
    """A product of the head [..., V] that tells the operations apart, in float32."""
    return _STEPS[torch.arange(math.prod(shape)) % len(_STEPS)].reshape(shape)


def find_form(
    product: Tensor, logits: Tensor, constants: Collection[float] = ()
) -> HeadForm | None:
    """The form that turns a trial product [..., V] into these logits [..., V].

    Args:
        product: as `trial_product` returns it, cut to the columns of `logits`.
        logits: what the model made of it.
        constants: numbers of the model's config; one that explains the logits is preferred to
            a number that was measured.

    Returns:
        None if no form does.
    """
    logits = logits.float()
    if torch.equal(logits, product):
        return HeadForm()
    first, second = (_at(product, logits, value) for value in _LARGE)
    cap = second if math.isfinite(second) and first == second > 0 else None
    scale = _at(product, logits, _ONE)
    if cap is not None:
        small = _at(product, logits, _SMALL) / cap
        scale = cap * math.atanh(small) / _SMALL if abs(small) < 1 else math.nan
    if not math.isfinite(scale) or scale <= 0:
        return None
    found = {form: _error(form.logits(product), logits) for form in _forms(scale, cap, constants)}
    best = min(found, key=lambda form: found[form])
    return best if found[best] <= _TOLERANCE else None


def constants_of(config: Any) -> set[float]:
    """The numbers of a transformers config, those of its parts included."""
    found: set[float] = set()
    waiting = [config.to_dict()]
    while waiting:
        for value in waiting.pop().values():
            if isinstance(value, dict):
                waiting.append(value)
            elif isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                found.add(float(value))
    return found


def _forms(scale: float, cap: float | None, constants: Collection[float]) -> Iterator[HeadForm]:
    """Forms of about this scale; the simplest first, because the first of equal ones is taken."""
    caps = [value for value in constants if cap and math.isclose(value, cap, rel_tol=1e-6)]
    cap = caps[0] if caps else cap
    if math.isclose(scale, 1.0, rel_tol=1e-4):
        yield HeadForm(softcap=cap)
    for value in [*constants, scale, float(f"{scale:.6g}")]:
        if math.isclose(value, scale, rel_tol=1e-4):
            yield HeadForm(multiplier=value, softcap=cap)
    for value in [*constants, float(f"{1 / scale:.6g}")]:
        if math.isclose(value, 1 / scale, rel_tol=1e-4):
            yield HeadForm(divisor=value, softcap=cap)


def _at(product: Tensor, logits: Tensor, value: float) -> float:
    places = product == value
    return float(logits[places][0]) if bool(places.any()) else math.nan


def _error(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative difference; infinite where one of the two is not finite."""
    difference = (ours - theirs).abs() / theirs.abs().clamp(min=1e-30)
    difference[ours == theirs] = 0.0
    worst = float(difference.max())
    return worst if math.isfinite(worst) else math.inf
