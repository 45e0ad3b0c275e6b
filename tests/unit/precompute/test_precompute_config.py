"""Options of a capture that are refused before any file is read."""

from dataclasses import replace

import pytest

from caskd.precompute import config
from caskd.store.errors import UsageError


@pytest.mark.parametrize("name", ["compact", "fitted", "none"])
def test_an_encoding_that_no_new_store_has_is_refused(name):
    options = config.PrecomputeConfig(teacher="t", data=("d",), store="s", encoding="exact")
    config.check_numbers(options)
    config.check_numbers(replace(options, sample=5, encoding=None))
    with pytest.raises(UsageError, match=rf"--encoding {name}: .*fitted2 or exact; omit --enc"):
        config.check_numbers(replace(options, encoding=name))
