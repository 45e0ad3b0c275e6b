"""Options of a capture that are refused before any file is read."""

from dataclasses import replace

import pytest

from caskd.precompute import config
from caskd.store.errors import UsageError


def test_an_encoding_of_another_kind_of_rows_is_refused(monkeypatch):
    pairs = dict(config.ROW_ENCODINGS)
    del pairs["sampled", "exact"]
    monkeypatch.setattr(config, "ROW_ENCODINGS", pairs)
    options = config.PrecomputeConfig(teacher="t", data=("d",), store="s", encoding="exact")
    config.check_numbers(options)
    with pytest.raises(UsageError, match=r"--encoding exact: .*sampled.*--encoding compact"):
        config.check_numbers(replace(options, sample=5))
