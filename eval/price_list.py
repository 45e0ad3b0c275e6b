"""What tokens cost, from a file of the user's own: JSON or TOML, one entry per model.

["my-large-model"]      # the name that predictions carry
prompt = 2.50           # for a million prompt tokens
output = 10.00          # for a million output tokens
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.store.errors import UsageError


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in the user's currency."""

    prompt: float
    output: float


def read_prices(file: str) -> Mapping[str, Price]:
    """Read a price list.

    Raises:
        UsageError: the file is missing, no price list, or a price is negative or no number.
    """
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"--prices {file}: no such file, expected a JSON or TOML price list")
    try:
        text = path.read_text(encoding="utf-8")
        entries = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return {name: _price(file, name, entry) for name, entry in entries.items()}
    except (ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--prices {file}: not a price list in JSON or TOML: {error}") from None


def price_of(prices: Mapping[str, Price], model: str) -> Price:
    """The price of a model.

    Raises:
        UsageError: the list does not have it.
    """
    if model not in prices:
        raise UsageError(
            f"--prices has no entry for {model!r} (it has {', '.join(sorted(prices)) or 'none'}); "
            "add one with prompt and output, each for a million tokens"
        )
    return prices[model]


def _price(file: str, name: str, entry: object) -> Price:
    numbers: list[Any] = (
        [entry.get(kind) for kind in ("prompt", "output")] if isinstance(entry, dict) else []
    )
    if len(numbers) != 2 or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and 0.0 <= n < float("inf")
        for n in numbers
    ):
        raise UsageError(
            f"--prices {file}: got {entry!r} for {name!r}, expected prompt and output, "
            "each the price of a million tokens"
        )
    prompt, output = numbers
    return Price(prompt, output)
