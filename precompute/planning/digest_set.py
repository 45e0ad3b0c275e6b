"""A set of 16-byte digests in 24 to 48 bytes each; Python's own set takes 4 times as many."""

from array import array

FIRST_SIZE = 1 << 12


class DigestSet:
    """Open addressing with linear probing in two arrays, at most two thirds full.

    Digests are random numbers, so that their low bits serve as the hash.
    """

    def __init__(self) -> None:
        self._num = 0
        self._low, self._high = _empty(FIRST_SIZE), _empty(FIRST_SIZE)

    def __len__(self) -> int:
        return self._num

    def add(self, digest: bytes) -> bool:
        """Add a digest of 16 bytes; returns False if the set has it already."""
        # Both halves 0 mark a free slot. A digest of zeros, 1 in 2^128, counts as the digest 1.
        low = int.from_bytes(digest[:8], "little")
        high = int.from_bytes(digest[8:], "little")
        if not self._place(low or int(high == 0), high):
            return False
        self._num += 1
        if 3 * self._num > 2 * len(self._low):
            self._grow()
        return True

    def _place(self, low: int, high: int) -> bool:
        """Write both halves into the first free slot; returns False if they are there already."""
        lows, highs, last = self._low, self._high, len(self._low) - 1
        slot = low & last
        while lows[slot] or highs[slot]:
            if lows[slot] == low and highs[slot] == high:
                return False
            slot = (slot + 1) & last
        lows[slot], highs[slot] = low, high
        return True

    def _grow(self) -> None:
        lows, highs = self._low, self._high
        self._low, self._high = _empty(2 * len(lows)), _empty(2 * len(lows))
        for low, high in zip(lows, highs, strict=True):
            if low or high:
                self._place(low, high)


def _empty(size: int) -> "array[int]":
    return array("Q", bytes(8 * size))
