"""The forward pass of a padded batch without transformers' search for packed sequences.

Given positions and no mask, transformers reads the positions back from the device, to see whether
a line holds several sequences (`find_packed_sequence_indices` in `masking_utils`, transformers 5):
the host waits there for all that the device has still to do. The lines of a padded batch hold
one sequence each, and the result for them is None.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import masking_utils

_SEARCH = "find_packed_sequence_indices"


@contextmanager
def one_sequence_a_line(is_padded: bool) -> Iterator[None]:
    """Skip the search inside the block, for a padded batch."""
    search = getattr(masking_utils, _SEARCH, None)
    if search is None or not is_padded:
        yield
        return
    setattr(masking_utils, _SEARCH, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, _SEARCH, search)
