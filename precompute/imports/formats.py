"""The formats that `caskd import` reads, one line each."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from caskd.precompute.import_config import FormatName
from caskd.precompute.imports.distillkit import open_distillkit
from caskd.precompute.imports.maxtext import open_maxtext
from caskd.precompute.imports.records import open_axolotl, open_dataset, open_nemo_aligner
from caskd.precompute.imports.source import Reading, Source

FORMATS: Mapping[FormatName, Callable[[str, Reading], Source]] = MappingProxyType(
    {
        "distillkit": open_distillkit,
        "dataset": open_dataset,
        "axolotl": open_axolotl,
        "nemo-aligner": open_nemo_aligner,
        "maxtext": open_maxtext,
    }
)
