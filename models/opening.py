"""Open checkpoints safely: safetensors only, no code from the checkpoint, no random weights.

Every `from_pretrained` and `from_config` of caskd is in this file. `source` is a folder or a hub
id, `flag` the option that named it, such as `--teacher`: errors start with the two.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from caskd.models.devices import memory_errors
from caskd.models.quantization import check_quantization
from caskd.store.errors import UsageError, reason
from caskd.store.imports import require

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_WHOLE = "a transformers checkpoint of a causal LM in safetensors that needs no remote code"
_QUANTIZED = (
    "a device and packages that compute its quantised weights: pass another --device, or the model "
    "before quantisation"
)


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model or an adapter on this machine."""

    folder: Path
    name: str
    """Last folder name, or hub id: never a path."""
    revision: str | None
    """Commit on the hub; None for a folder."""


def locate(source: str, flag: str, *, weights: bool = True) -> Checkpoint:
    """Find a folder, or download a hub id; without its weights if they are not needed.

    Raises:
        UsageError: no such folder, or the hub does not provide it.
    """
    check_source(source, flag)
    folder = Path(source)
    if folder.is_dir():
        return Checkpoint(folder, folder.resolve().name, None)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = _PATTERNS if weights else _PATTERNS[1:]
        snapshot = Path(snapshot_download(source, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"{flag} {source}: no such folder, and the hub raised {type(error).__name__}; expected "
            f"a folder or a hub id; check {flag} and the connection"
        ) from error
    return Checkpoint(snapshot, source, snapshot.name)  # the cache names a snapshot by its commit


def check_source(source: str | Path, flag: str) -> None:
    """Refuse a path without a folder before the hub is queried for it.

    Raises:
        UsageError: `source` is a path without a folder.
    """
    text = str(source)
    looks_like_a_path = text.count("/") > 1 or text.startswith((".", "/", "~"))
    if looks_like_a_path and not Path(source).is_dir():
        raise UsageError(
            f"{flag} {text}: no such folder; expected a folder or a hub id; check {flag}"
        )


def open_config(source: str | Path, flag: str) -> Any:
    """The model's config.

    Raises:
        UsageError: it cannot be opened.
    """
    from transformers import AutoConfig

    check_source(source, flag)
    with _errors(source, flag, "config", f"{_WHOLE}: pass another {flag}"):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


def open_tokenizer(source: str | Path, flag: str) -> Any:
    """The model's tokenizer.

    Raises:
        UsageError: it cannot be opened.
    """
    from transformers import AutoTokenizer

    check_source(source, flag)
    expected = f"a transformers tokenizer that needs no remote code: pass another {flag}"
    with _errors(source, flag, "tokenizer", expected):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def open_generation_config(source: str | Path) -> Any:
    """The model's generation config; without such a file the one that its config implies; None
    for a folder that holds neither, such as an adapter."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source, trust_remote_code=False)
    except OSError:
        pass
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return GenerationConfig.from_model_config(config)


def build_model(
    config: Any, flag: str, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> Any:
    """A causal LM of a config, with random weights; on device `meta` without any memory.

    Raises:
        UsageError: transformers has no causal LM for it.
    """
    from transformers import AutoModelForCausalLM

    options = {} if dtype is None else {"dtype": dtype}
    name = getattr(config, "model_type", type(config).__name__)
    expected = f"the config of a causal LM: pass another {flag}"
    with _errors(name, flag, "model", expected), torch.device(device):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def open_model(
    source: str | Path,
    flag: str,
    *,
    dtype: str = "auto",
    attention: str | None = None,
    device_map: str | dict[str, str | int] | None = None,
    name: str | None = None,
) -> Any:
    """A causal LM with its weights, on the CPU unless `device_map` lays it out.

    Args:
        source: a folder or a hub id.
        flag: the option that named it.
        dtype: name of the weights' dtype; `auto` is that of the files.
        attention: attention implementation; by default transformers chooses.
        device_map: layout over several devices, as transformers takes it.
        name: the checkpoint's name in errors; by default `source`.

    Raises:
        UsageError: it cannot be opened, weights are missing, which transformers would fill with
            random numbers, or parts of its layers are left over, such as scales.
        MemoryError: the weights do not fit into memory.
    """
    from transformers import AutoModelForCausalLM

    check_source(source, flag)
    shown = source if name is None else name
    if config_folder(source) is not None:  # else an adapter
        check_quantization(open_config(source, flag), f"{flag} {shown}")
    options, expected = {}, f"{_WHOLE}: pass another {flag}"
    if attention is not None:
        options = {"attn_implementation": attention}
        expected = (
            f"{_WHOLE}, and an attention implementation that is installed and that the model "
            f"supports (got {attention}): pass --attention sdpa or eager"
        )
    with _errors(shown, flag, "model", expected), memory_errors():
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    missing = report["missing_keys"]
    if missing:
        raise UsageError(
            f"{flag} {shown}: lacks {len(missing)} weights, the first {min(missing)!r}; expected "
            "a whole checkpoint; copy or download it again"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        check_quantization(model.config, f"{flag} {shown}")
        with _errors(shown, flag, "model", _QUANTIZED), memory_errors(), torch.no_grad():
            # compressed-tensors unpacks its weights in the first forward of the whole model.
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
    _check_all_used(model, report["unexpected_keys"], f"{flag} {shown}")
    return model


def _check_all_used(model: Any, left_over: Iterable[str], subject: str) -> None:
    """Refuse weights of the model's own layers that the model has no place for.

    Without a bias or a scale, the layer computes other numbers. Weights of parts that the model
    does not have, such as further heads, change nothing.
    """
    layers = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    found = sorted(name for name in left_over if name.rpartition(".")[0] in layers)
    if found:
        raise UsageError(
            f"{subject}: {type(model).__name__} has no place for {len(found)} weights of its own "
            f"layers, the first {found[0]!r}; expected a config.json that describes all of them, "
            "with quantization_config where weights are quantised; complete it, or pass the model "
            "before quantisation"
        )


def config_folder(source: str | Path) -> Path | None:
    """The folder of an opened model's config.json; None if the model has no such file.

    The folder of a hub id is a snapshot in the cache, whose name is the commit.
    """
    from transformers.utils import cached_file

    found = cached_file(
        source,
        "config.json",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
    )
    return None if found is None else Path(found).parent


def open_adapter(model: Any, folder: Path, flag: str, *, name: str | None = None) -> Any:
    """The model with a peft adapter's layers inside.

    They are not merged into the weights: in bfloat16 that would round away a part of them.

    Args:
        model: the causal LM that the adapter was trained on.
        folder: of the adapter, with weights in safetensors.
        flag: the option that named it.
        name: the adapter's name in errors; by default `folder`.

    Raises:
        UsageError: peft is not installed, or the adapter does not fit the model.
    """
    peft = require("peft", extra="lora", needed_by=flag)
    from safetensors import safe_open

    shown = folder if name is None else name
    try:
        adapted = peft.PeftModel.from_pretrained(model, folder, trust_remote_code=False)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _does_not_fit(shown, flag, reason(error)) from error
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        stored = set(weights.keys())
    # peft skips weights that match no layer, and leaves layers without weights random.
    inside = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    differing = stored ^ set(inside)
    if differing:
        text = f"{len(differing)} weights differ, such as {min(differing)!r}"
        raise _does_not_fit(shown, flag, text)
    return adapted.get_base_model()


def _does_not_fit(shown: str | Path, flag: str, text: str) -> UsageError:
    return UsageError(
        f"{flag} {shown}: the adapter does not fit the model ({text}); expected the model that it "
        f"was trained on; pass another {flag} or another model"
    )


@contextmanager
def _errors(shown: str | Path, flag: str, part: str, expected: str) -> Iterator[None]:
    """Turn every error of transformers about a checkpoint into one line."""
    from safetensors import SafetensorError

    known = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)
    try:
        yield
    except (*known, SafetensorError) as error:
        raise UsageError(
            f"{flag} {shown}: cannot open the {part} ({reason(error)}); expected {expected}"
        ) from error
