"""No file of a model folder is ever run, and nothing is taken from outside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import save_tiny

from caskd.models import open_config, open_model, open_tokenizer
from caskd.models.decoding import load_for_decoding
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


class _Trap:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.mark, "w")


def test_a_folder_of_pickles_is_refused_with_the_cure(folder: Path, tmp_path: Path) -> None:
    """Beside safetensors a pickle is ignored; alone it is refused. It is never opened."""
    mark = tmp_path / "unpickled"
    torch.save(_Trap(str(mark)), folder / "pytorch_model.bin")
    for opened in (open_model, load_for_decoding):
        opened(str(folder), "--student")
    (folder / "model.safetensors").unlink()
    for opened in (open_model, load_for_decoding):
        with pytest.raises(UsageError, match=r"^--student .*pytorch_model\.bin") as caught:
            opened(str(folder), "--student")
        assert "save_pretrained" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not mark.exists()
