"""Cost of a cascade: floating-point operations, money, seconds.

A forward pass costs 2 FLOPs per token and parameter that the token uses. The small model always
answers, and the large model answers the deferred examples: cost = C_small + deferral_rate *
C_large. A rule that decides before generation saves the small model's answers to deferred examples.
All examples weigh the same.

Legend: E examples, P points of a curve.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import Predictions
from caskd.eval.curves.deferral import defer_order, deferred_mean
from caskd.store.errors import UsageError, reason
from caskd.store.io import escape_control, parse_json, read_regular, value_text
from caskd.store.spacing import thin

FloatArray = npt.NDArray[np.float64]

TAIL = 0.95
_TAIL_POINTS = 101


@dataclass(frozen=True, eq=False)
class Shares:
    """Cost of each example, by the case that incurs it: arrays [E]."""

    always: FloatArray
    """Incurred for every example."""
    kept: FloatArray
    """Incurred if the small model's answer is kept."""
    deferred: FloatArray
    """Incurred if the example is deferred."""

    def mean(self, score: FloatArray) -> FloatArray:
        """Mean cost per example [P] at each point of the curve."""
        both = float((self.always + self.kept).mean())
        return both + deferred_mean(score, self.deferred - self.kept)

    def of(self, deferred: npt.NDArray[np.bool_]) -> FloatArray:
        """[E] cost of each example if these are deferred."""
        return self.always + np.where(deferred, self.deferred, self.kept)


def shares(small: FloatArray, large: FloatArray, *, saved: FloatArray | None = None) -> Shares:
    """Costs of a cascade.

    Args:
        small: [E] cost of the small model's answers.
        large: [E] cost of the large model's answers.
        saved: [E] part of `small` that deferred examples do not incur; none by default.
    """
    kept = np.zeros_like(small) if saved is None else saved
    return Shares(always=small - kept, kept=kept, deferred=large)


def flops_per_token(num_parameters: int | None) -> float:
    """FLOPs of one token: 2 per parameter, as in CAT (arXiv 2406.00060); NaN if not known."""
    return np.nan if num_parameters is None else 2.0 * num_parameters


def token_cost(
    deferral_rate: FloatArray,
    small_parameters: int | None,
    large_parameters: int | None,
    *,
    before_generation: bool = False,
) -> FloatArray:
    """FLOPs per token [P] of the cascade at each deferral rate: the paper's axis.

    It ignores prompts and the different lengths of answers; `flops` counts both. All are NaN if the
    parameters of a model are not known.
    """
    answered = 1.0 - deferral_rate if before_generation else 1.0
    return answered * flops_per_token(small_parameters) + deferral_rate * flops_per_token(
        large_parameters
    )


def answer_cost(predictions: Predictions) -> FloatArray:
    """[E] cost of each answer: FLOPs per token, or the cost that an outcome table states."""
    if predictions.is_outcomes:
        return predictions.numbers("cost")
    return np.full(len(predictions), flops_per_token(predictions.num_active_parameters))


def flops(predictions: Predictions) -> tuple[FloatArray, FloatArray]:
    """FLOPs [E] of each prompt, and of each answer."""
    each = flops_per_token(predictions.num_active_parameters)
    return each * predictions.numbers("prompt_tokens"), each * predictions.numbers("output_tokens")


def tail_seconds(score: FloatArray, seconds: Shares) -> tuple[FloatArray, FloatArray]:
    """Deferral rates and the 95th percentile of the seconds per example there.

    Computed at up to 101 points of the curve, because each point sorts the examples again.
    """
    order, ends = defer_order(score)
    counts = ends[thin(ends.size, _TAIL_POINTS, rounding="down")]
    deferred = np.zeros(score.size, dtype=bool)
    tails = np.empty(counts.size)
    for index, count in enumerate(counts):
        deferred[order[:count]] = True
        tails[index] = np.quantile(seconds.of(deferred), TAIL)
    return counts / score.size, tails


@dataclass(frozen=True)
class Price:
    """The price of a million tokens, in the user's currency."""

    prompt: float
    output: float


def money(predictions: Predictions, price: Price) -> tuple[FloatArray, FloatArray]:
    """Price [E] of each prompt, and of each answer."""
    return (
        predictions.numbers("prompt_tokens") * price.prompt / 1e6,
        predictions.numbers("output_tokens") * price.output / 1e6,
    )


def price_of(prices: Mapping[str, Price], model: str) -> Price:
    """The price of a model.

    Raises:
        UsageError: the list has no entry for it.
    """
    if model not in prices:
        known = ", ".join(map(escape_control, sorted(prices)))
        raise UsageError(
            f"--prices: no entry for {value_text(model)} (it has {known or 'none'}); "
            "expected prompt and output, the prices of a million tokens each; add them"
        )
    return prices[model]


def read_prices(file: str) -> Mapping[str, Price]:
    """Read a price list.

    Raises:
        UsageError: the file is missing or not a price list, or a price is negative or not a number.
    """
    path = Path(file)
    if not path.is_file():
        raise UsageError(
            f"--prices {file}: does not exist; expected a JSON or TOML price list; fix the path"
        )
    try:
        content = read_regular(path)
        is_json = path.suffix == ".json"
        entries = (
            parse_json(content, constants=True)
            if is_json
            else tomllib.loads(content.decode("utf-8-sig"))
        )
        return {name: _price(file, name, entry) for name, entry in entries.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"--prices {file}: not a price list in JSON or TOML ({reason(error)}); expected the "
            "prices of each model name; fix the file"
        ) from None


def _price(file: str, name: str, entry: object) -> Price:
    numbers: list[Any] = (
        [entry.get(kind) for kind in ("prompt", "output")] if isinstance(entry, dict) else []
    )
    if len(numbers) != 2 or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and 0.0 <= n < float("inf")
        for n in numbers
    ):
        raise UsageError(
            f"--prices {file}: got {value_text(entry)} for {value_text(name)}; expected prompt "
            "and output, the prices of a million tokens each; fix the entry"
        )
    prompt, output = numbers
    return Price(prompt, output)
