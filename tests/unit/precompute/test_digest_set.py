"""The set of digests answers like Python's own, also when digests share their low bits."""

from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.precompute.planning.digest_set import FIRST_SIZE, DigestSet


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=60))
def test_it_answers_like_a_set(digests: list[tuple[int, int, bool]]) -> None:
    """Few values in either half, with and without equal low bits: slots collide and wrap."""
    ours, theirs = DigestSet(), {bytes(15) + b"\1"}
    assert ours.add(bytes(15) + b"\1")
    for low, high, last in digests:
        half = low * FIRST_SIZE + (FIRST_SIZE - 1 if last else 0)
        digest = half.to_bytes(8, "little") + (high + 1).to_bytes(8, "little")
        assert ours.add(digest) == (digest not in theirs)
        theirs.add(digest)
    assert len(ours) == len(theirs)


def test_it_grows_and_keeps_what_it_has() -> None:
    numbers = (n * 0x9E3779B97F4A7C15 % 2**128 for n in range(1, 3 * FIRST_SIZE))
    many = [number.to_bytes(16, "little") for number in numbers]
    digests = DigestSet()
    assert all(digests.add(digest) for digest in many)
    assert not any(digests.add(digest) for digest in many)
    assert len(digests) == len(many)


def test_a_digest_of_zeros_is_one_too() -> None:
    digests = DigestSet()
    assert digests.add(bytes(16))
    assert not digests.add(bytes(16))
    assert len(digests) == 1
