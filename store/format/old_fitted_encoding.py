"""The fitted encoding of stores that an earlier caskd wrote, which no new store has.

Legend: N rows of a chunk, k cells per row.

It differs in the places alone: they hold the first cell too, and stand by row, then by rank.
"""

from collections.abc import Mapping

from caskd.store.cells import from_front, kept_cells
from caskd.store.format.codecs import Array
from caskd.store.format.fitted_encoding import FittedTopK, put_ids
from caskd.store.format.rows import RowArray


class OldFittedTopK(FittedTopK):
    """Read only."""

    name = "fitted"
    is_written = False
    cell_arrays = (
        RowArray("topk_id_places", "uint32", "ragged", field="topk_ids"),
        *FittedTopK.cell_arrays[1:],
    )

    def encode(
        self, rows: Mapping[str, Array], id_orders: Array | None, vocab_size: int
    ) -> dict[str, Array]:
        """Never called: no store is planned with it."""
        raise AssertionError(self.name)

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode a field, or an intermediate array, of one chunk."""
        if name != "topk_ids":
            super().decode(name, stored, id_orders, out)
            return
        packed = stored["topk_id_places"]
        cells = kept_cells(stored["num_kept"], packed.shape[1])
        places = from_front(packed, cells, [(0, len(cells))])
        put_ids(places.T[1:], stored, out)
