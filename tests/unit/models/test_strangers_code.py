"""No file of a model folder is ever run, and nothing is taken from outside it."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import save_tiny

from caskd.models import open_config, open_model, open_tokenizer
from caskd.store.errors import UsageError

CODE = """
open({mark!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class C(LlamaConfig): model_type = "evil"
class L(LlamaForCausalLM): config_class = C
class T(PreTrainedTokenizerFast): pass
def generate(*_, **__): pass
"""


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = save_tiny(tmp_path / "model")
    (found / "custom_generate").mkdir()
    for name in ("evil.py", "custom_generate/generate.py"):
        (found / name).write_text(CODE.format(mark=str(tmp_path / "ran")))
    return found


@pytest.mark.parametrize("kind", ["evil", "llama"])
def test_code_of_a_folder_never_runs(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.L"}
    change(folder / "config.json", model_type=kind, auto_map=auto, trust_remote_code=True)
    tokens = {"AutoTokenizer": ["evil.T", "evil.T"]}
    change(folder / "tokenizer_config.json", auto_map=tokens, tokenizer_class="T")
    for opened in (open_config, open_model, open_tokenizer):
        try:
            opened(folder, "--student")
        except UsageError as error:
            assert "--student" in str(error)  # noqa: PT017
    assert not (folder.parent / "ran").exists()


def test_a_config_names_no_code_of_the_hub(folder: Path) -> None:
    change(folder / "config.json", attn_implementation="evil/kernel")
    for opened in (open_config, open_model):
        with pytest.raises(UsageError, match=r"--student.*evil/kernel.*attn_implementation"):
            opened(folder, "--student")


def test_a_whole_model_beside_an_adapter_is_ambiguous(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config\.json and adapter_config\.json"):
        open_model(folder, "--student")
