"""Which examples may share a batch, so that each gets the numbers that it gets alone.

A model passes a check before its examples share batches: the same examples in a batch and one at a
time. The check is repeated beyond each length at which the config changes the computation, when an
example first exceeds it. Where it fails, examples run one at a time.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from caskd.models.batching import LengthBorders
from caskd.store import io

_FEW = 3
_BASE = 8
"""Tokens of the longest example of the first check."""


class Probe(Protocol):
    """Checks of one model in one layout of its batches."""

    def is_same_together(self, lengths: Sequence[int], num_new: int) -> bool:
        """Whether examples in a batch have the numbers of each alone.

        Args:
            lengths: tokens of each example, new ones included.
            num_new: tokens of them that are decoded one by one.
        """

    def check_causal(self, length: int) -> None:
        """Refuse a model in which later tokens of an example of this length change earlier ones.

        Raises:
            UsageError: they do.
        """


def _to_stderr(text: str) -> None:
    io.tell(text, file=sys.stderr, flush=True)


class BatchGroups:
    """Divides batches into groups of examples that may share a forward pass.

    Args:
        borders: of the model's config.
        probe: of the model.
        name: the model, as warnings name it.
        tell: prints a warning; by default to stderr.
    """

    def __init__(
        self,
        borders: LengthBorders,
        probe: Probe,
        name: str,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.borders = borders
        self._probe = probe
        self._name = name
        self._tell = tell or _to_stderr
        self._edges = (0, *borders.all)
        self._same: dict[int, bool] = {}
        self._causal = {0}  # checked when the model was opened
        self._told: set[str] = set()

    def groups(self, lengths: Sequence[int], num_new: int = 0) -> list[list[int]]:
        """Indices of the examples of each group, by first appearance.

        Args:
            lengths: tokens of each example.
            num_new: tokens that will be decoded after them.

        Raises:
            UsageError: later tokens change earlier ones, beyond a border that was first reached.
        """
        longest = max(lengths) + num_new
        self.check_causal(longest)
        if len(lengths) == 1:
            return [[0]]
        found: dict[tuple[int, int], list[int]] = {}
        for index, length in enumerate(lengths):
            alone = self._goes_alone(length, num_new, longest)
            key = (1, index) if alone else (0, self.borders.num_whole(length))
            found.setdefault(key, []).append(index)
        return list(found.values())

    def is_same_when_short(self) -> bool:
        """Whether short examples have the numbers of each alone."""
        return self._is_same(0, _BASE, 0)

    def may_split(self, longest: int) -> bool:
        """Whether batches of examples of up to this length may have to be divided.

        Raises:
            UsageError: later tokens change earlier ones.
        """
        self.check_causal(longest)
        if self.borders.num_whole(longest) or self.borders.exceeds_each(longest):
            return True
        return not all(
            self._is_same(level, longest, 0) for level in range(self._level(longest) + 1)
        )

    def check_causal(self, longest: int) -> None:
        """Check causality beyond each border that an example of this length exceeds.

        Raises:
            UsageError: later tokens change earlier ones.
        """
        for level in range(1, self._level(longest) + 1):
            if level not in self._causal:
                self._probe.check_causal(max(min(self._edges[level] + 5, longest), _FEW))
                self._causal.add(level)

    def _goes_alone(self, length: int, num_new: int, longest: int) -> bool:
        total = length + num_new
        if self.borders.exceeds_each(total):
            self._say(f"examples of more than {self.borders.each:,} tokens run one at a time")
            return True
        if self.borders.num_whole(length) != self.borders.num_whole(total):
            border = self.borders.whole[self.borders.num_whole(length)]
            self._say(f"answers that grow beyond {border:,} tokens are decoded one at a time")
            return True
        for level in range(self._level(total) + 1):
            if not self._is_same(level, longest, num_new):
                edge = self._edges[level]
                which = f"examples of more than {edge:,} tokens" if edge else "examples"
                self._say(f"{which} run one at a time")
                return True
        return False

    def _level(self, length: int) -> int:
        """Number of borders that an example of this length exceeds."""
        return sum(length > edge for edge in self._edges[1:])

    def _is_same(self, level: int, longest: int, num_new: int) -> bool:
        if level not in self._same:
            few = min(num_new, _FEW)
            lengths = self._lengths(level, longest, few)
            # Lengths that the config keeps from sharing a batch are not compared.
            alike = len(set(lengths)) == 1
            self._same[level] = alike or self._probe.is_same_together(lengths, few)
        return self._same[level]

    def _lengths(self, level: int, longest: int, few: int) -> list[int]:
        """Lengths of a check beyond a border: on both sides of it, where a batch may mix them."""
        edge = self._edges[level]
        passed = [border for border in self.borders.whole if border <= edge]
        low = max(passed) + 1 + few if passed else _FEW + few
        later = [b for b in (*self.borders.whole, self.borders.each) if b is not None and b > edge]
        high = min([_BASE + few if level == 0 else longest, *later])
        wanted = [_BASE + few, 5 + few, low] if level == 0 else [edge + 5, low + 2]
        if level and few:  # a prompt below the border, whose new tokens cross it
            wanted.append(edge + 2)
        return [max(min(length, high), min(low, high)) for length in wanted]

    def _say(self, consequence: str) -> None:
        if consequence not in self._told:
            self._told.add(consequence)
            self._tell(
                f"warning: {self._name} produces different numbers in a batch than one example at "
                f"a time; {consequence}"
            )
