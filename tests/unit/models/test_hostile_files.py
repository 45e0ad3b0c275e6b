"""Tokenizers and adapters that would take all memory, hours or a traceback: one line each."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import save_tiny
from peft import LoraConfig, get_peft_model

from caskd.models import open_adapter, open_model, open_tokenizer
from caskd.store.errors import UsageError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    settings = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(open_model(base, "--model"), settings).save_pretrained(tmp_path / "adapter")
    change(tmp_path / "adapter", base_model_name_or_path=str(base))
    return tmp_path / "adapter"


def change(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def one_line(caught: pytest.ExceptionInfo[UsageError], *facts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for fact in (*facts, "expected", "pass"):
        assert fact in text, text


def test_an_id_of_four_billion_takes_no_table(copy: Path) -> None:
    file = copy / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    vocabulary["model"]["vocab"]["a"] = 4_000_000_000
    file.write_text(json.dumps(vocabulary))
    with pytest.raises(UsageError) as caught:
        open_tokenizer(copy, "--teacher")
    one_line(caught, "copy", "4,000,000,000", "16,777,216")


def test_a_tokenizer_of_hundreds_of_megabytes_is_not_read(copy: Path) -> None:
    os.truncate(copy / "tokenizer.json", 200 << 20)  # sparse: takes no room
    with pytest.raises(UsageError) as caught:
        open_tokenizer(copy, "--model")
    one_line(caught, f"--model {copy}", "209,715,200", "134,217,728")


def test_a_tokenizer_that_is_a_pipe_is_not_waited_for(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    os.mkfifo(copy / "tokenizer.json")
    with pytest.raises(UsageError) as caught:
        open_tokenizer(copy, "--model")
    one_line(caught, "no regular file")


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({"r": 10**9}, "1000000000"),
        ({"r": -1}, "-1"),
        ({"rank_pattern": {"q_proj": 10**9}}, "1000000000"),
        ({"target_modules": [f"m{n}" for n in range(20_000)]}, "20,000 entries"),
        ({"target_modules": "((("}, "unterminated"),
        ({"peft_type": "EVIL"}, "EVIL"),
    ],
)
def test_settings_of_an_adapter(
    values: dict[str, Any], fact: str, base: Path, adapter: Path
) -> None:
    change(adapter, **values)
    with pytest.raises(UsageError) as caught:
        open_adapter(open_model(base, "--teacher"), adapter, "--adapter")
    one_line(caught, f"--adapter {adapter}", fact)
    with pytest.raises(UsageError) as caught:
        open_model(adapter, "--model")
    one_line(caught, f"--model {adapter}", fact)


def test_weights_of_an_adapter_that_are_no_safetensors(base: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(UsageError) as caught:
        open_adapter(open_model(base, "--teacher"), adapter, "--adapter")
    one_line(caught, f"--adapter {adapter}", "header")


@pytest.mark.parametrize("name", [None, "", ["a"], "/no/such/folder"])
def test_an_adapter_without_a_base_model_asks_no_hub(name: object, adapter: Path) -> None:
    change(adapter, base_model_name_or_path=name)
    with pytest.raises(UsageError) as caught:
        open_model(adapter, "--model")
    text = str(caught.value)
    assert str(adapter) in text
    assert "base" in text
    assert "\n" not in text


def test_a_base_model_of_pickles_is_refused(copy: Path, adapter: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    change(adapter, base_model_name_or_path=str(copy))
    with pytest.raises(UsageError) as caught:
        open_model(adapter, "--model")
    one_line(caught, "base model", "pytorch_model.bin", "save_pretrained")
