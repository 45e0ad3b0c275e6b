"""The table of row encodings.

To add an encoding: write a module with a subclass of RowEncoding, and add its instance here.
"""

from collections.abc import Mapping

from caskd.store.format.codecs import Array
from caskd.store.format.compact_encoding import CompactDraws, CompactHeadDraws, CompactTopK
from caskd.store.format.fitted_draws import FittedDraws, FittedHeadDraws
from caskd.store.format.fitted_encoding import FittedTopK, OldFittedTopK
from caskd.store.format.rows import HEAD_SAMPLED, SAMPLED, TOPK, RowEncoding, RowKind


class Exact(RowEncoding):
    """Every field is an array of its own name."""

    name = "exact"

    def __init__(self, kind: RowKind, cell_bytes: tuple[float, float]) -> None:
        self.kind, self.cell_arrays, self.cell_bytes = kind, kind.cells, cell_bytes

    def encode(self, rows: Mapping[str, Array], vocab_size: int) -> dict[str, Array]:
        """The fields themselves."""
        return dict(rows)

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Never called: no field has sources."""
        raise AssertionError(name)


ROW_ENCODINGS: Mapping[tuple[str, str], RowEncoding] = {
    (encoding.kind.name, encoding.name): encoding
    for encoding in (
        FittedTopK(),
        FittedDraws(),
        FittedHeadDraws(),
        Exact(TOPK, cell_bytes=(2.8, 5.2)),
        Exact(SAMPLED, cell_bytes=(0.15, 1.0)),
        Exact(HEAD_SAMPLED, cell_bytes=(0.3, 1.6)),
        CompactTopK(),
        CompactDraws(),
        CompactHeadDraws(),
        OldFittedTopK(),
    )
}
"""(`capture.kind`, `encoding`) of a store's identity -> its encoding."""


DEFAULT_ENCODING = "fitted2"


def written_encodings() -> list[str]:
    """Names of the encodings that a new store may have; each is there for every kind of rows."""
    written = (encoding for encoding in ROW_ENCODINGS.values() if encoding.is_written)
    return list(dict.fromkeys(encoding.name for encoding in written))
