"""Imports on first use: lazy front doors and optional extras."""

import json
import sys

import pytest

from caskd.store.errors import UsageError
from caskd.store.imports import lazy_exports, require


def test_a_name_is_imported_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    find = lazy_exports("json", {"main": "tool", "JSONDecoder": "decoder"})
    assert "json.tool" not in sys.modules
    assert callable(find("main"))
    assert "json.tool" in sys.modules
    assert find("JSONDecoder") is json.JSONDecoder


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'json'.*'nothing'"):
        lazy_exports("json", {})("nothing")


def test_a_package_that_is_installed() -> None:
    assert require("json.decoder", extra="lora", needed_by="--lora-rank").JSONDecoder


def test_a_missing_package_names_what_needs_it_and_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "peft.tuners", None)
    for module in ("peft", "peft.tuners"):
        with pytest.raises(UsageError) as refused:
            require(module, extra="lora", needed_by="--lora-rank")
        expected = "--lora-rank needs peft; run pip install 'caskd[lora]'"
        assert str(refused.value) == expected
