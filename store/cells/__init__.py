"""How the cells of rows become small numbers: lists and orders of ids, octaves of ranks, codes."""

from caskd.store.cells.draws import (
    draw_cells,
    from_cells,
    packed_draws,
    places_of_steps,
    put_behind_head,
    to_cells,
)
from caskd.store.cells.id_lists import (
    IdLists,
    ListPlaces,
    ListShape,
    check_places,
    fit_lists,
    ids_of_places,
    num_places,
)
from caskd.store.cells.id_orders import all_kept, blank, decode_ids, kept_cells
from caskd.store.cells.log_probabilities import (
    MAX_CODE,
    log_probability_codes,
    log_probability_table,
    logits_of_codes,
    rounded_mass,
    sum_of_steps,
)
from caskd.store.cells.octaves import from_front, octaves, run_sums, to_front

__all__ = [
    "MAX_CODE",
    "IdLists",
    "ListPlaces",
    "ListShape",
    "all_kept",
    "blank",
    "check_places",
    "decode_ids",
    "draw_cells",
    "fit_lists",
    "from_cells",
    "from_front",
    "ids_of_places",
    "kept_cells",
    "log_probability_codes",
    "log_probability_table",
    "logits_of_codes",
    "num_places",
    "octaves",
    "packed_draws",
    "places_of_steps",
    "put_behind_head",
    "rounded_mass",
    "run_sums",
    "sum_of_steps",
    "to_cells",
    "to_front",
]
