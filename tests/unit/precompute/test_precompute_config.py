"""Options of a capture that are refused before any file is read."""

from dataclasses import replace

import pytest

from caskd.precompute import config
from caskd.store.errors import UsageError
from caskd.store.format import ROW_ENCODINGS


def test_an_encoding_of_another_kind_of_rows_is_refused(monkeypatch):
    monkeypatch.delitem(ROW_ENCODINGS, ("sampled", "exact"))
    options = config.PrecomputeConfig(teacher="t", data=("d",), store="s", encoding="exact")
    config.check_numbers(options)
    with pytest.raises(UsageError, match=r"--encoding exact: .*sampled.*--encoding compact"):
        config.check_numbers(replace(options, sample=5))
