"""A run of very many passes over a store is warned of: more often a typing error than a plan."""

from collections.abc import Iterator

from caskd.train.data.mixture import MixedOrder, shares
from caskd.train.data.store_mix import StoreMix

MANY_EPOCHS = 100
"""A run of more passes over a store than this is warned of."""


def many_epochs(
    mix: StoreMix, order: MixedOrder, *, steps: int, batch: int, flags: tuple[str, str]
) -> Iterator[str]:
    """One line for each store that a run passes over more than `MANY_EPOCHS` times.

    Args:
        mix: the stores.
        order: of their examples.
        steps: of the run.
        batch: examples of a step.
        flags: names of the options that set the two.
    """
    each = zip(mix.stores, order.orders, shares(mix.weights), strict=True)
    for store, own, share in each:
        epochs = steps * batch * share / own.num_examples
        if epochs > MANY_EPOCHS:
            yield (
                f"warning: {flags[0]} {steps:,} x {flags[1]} {batch:,}"
                + (f" x {share:.1%}" if share < 1 else "")
                + f" = {epochs:,.0f} epochs of the {own.num_examples:,} examples of "
                f"{store.name}; expected at most {MANY_EPOCHS}: {flags[0]} "
                f"{max(1, round(steps / epochs)):,} is one epoch"
            )
