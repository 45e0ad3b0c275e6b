"""How the cells of rows become small numbers: orders and lists of ids, octaves of ranks."""

from caskd.store.cells.id_lists import (
    IdLists,
    ListPlaces,
    ListShape,
    check_places,
    fit_lists,
    ids_of_places,
    num_places,
)
from caskd.store.cells.id_orders import (
    IdPositions,
    all_kept,
    blank,
    decode_ids,
    fit_orders,
    kept_cells,
)
from caskd.store.cells.octaves import from_front, octaves, run_sums, to_front

__all__ = [
    "IdLists",
    "IdPositions",
    "ListPlaces",
    "ListShape",
    "all_kept",
    "blank",
    "check_places",
    "decode_ids",
    "fit_lists",
    "fit_orders",
    "from_front",
    "ids_of_places",
    "kept_cells",
    "num_places",
    "octaves",
    "run_sums",
    "to_front",
]
