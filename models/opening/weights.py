"""Open the weights of a checkpoint: safetensors only, no code of the checkpoint, nothing random."""

import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from caskd.models.devices import memory_errors
from caskd.models.opening.adapters import read_adapter_settings
from caskd.models.opening.configs import open_config
from caskd.models.opening.locating import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    WHOLE,
    check_openable,
    check_reachable,
    check_source,
    config_folder,
    opening_errors,
)
from caskd.models.opening.quantization import check_quantization
from caskd.models.opening.tensor_parallel import distributed_options
from caskd.store.errors import CaskdError, UsageError, reason
from caskd.store.imports import require
from caskd.store.io import check_readable, escape_control, value_text

_QUANTIZED = (
    "a device and packages that compute its quantised weights: pass another --device, or the model "
    "before quantisation"
)


def build_model(
    config: Any,
    flag: str,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    attention: str | None = None,
) -> Any:
    """A causal LM of a config, with random weights; on device `meta` without any memory.

    Raises:
        UsageError: transformers has no causal LM for it.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if attention is not None:
        options["attn_implementation"] = attention
    name = getattr(config, "model_type", type(config).__name__)
    expected = f"the config of a causal LM: pass another {flag}"
    with opening_errors(name, flag, "model", expected), torch.device(device):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def open_model(
    source: str | Path,
    flag: str,
    *,
    dtype: str = "auto",
    attention: str | None = None,
    device_map: str | dict[str, str | int] | None = None,
    tensor_parallel: int = 1,
    name: str | None = None,
) -> Any:
    """A causal LM with its weights, on the CPU unless `device_map` lays it out.

    Args:
        source: a folder or a hub id.
        flag: the option that named it.
        dtype: name of the weights' dtype; `auto` is that of the files.
        attention: attention implementation; by default transformers chooses.
        device_map: layout over several devices, as transformers takes it.
        tensor_parallel: ranks of torch.distributed that divide the weights; all of them call this.
        name: the checkpoint's name in errors; by default `source`.

    Raises:
        UsageError: it cannot be opened, weights are missing, which transformers would fill with
            random numbers, or parts of its layers are left over, such as scales.
        MemoryError: the weights do not fit into memory.
    """
    from transformers import AutoModelForCausalLM

    check_openable(source, flag)
    _check_folder(Path(source), flag)
    shown = source if name is None else name
    if config_folder(source) is not None:  # else an adapter
        check_quantization(open_config(source, flag), f"{flag} {shown}")
    expected = f"{WHOLE}: pass another {flag}"
    options: dict[str, Any] = {}
    if attention is not None:
        options = {"attn_implementation": attention}
        expected = (
            f"{WHOLE}, and an attention implementation that is installed and that the model "
            f"supports (got {attention}): pass --attention sdpa or eager"
        )
    if tensor_parallel > 1:
        options |= distributed_options(tensor_parallel)
    with opening_errors(shown, flag, "model", expected), memory_errors():
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            **options,
        )
    for key, stored, wanted in sorted(report["mismatched_keys"])[:1]:
        raise UsageError(
            f"{flag} {shown}: {len(report['mismatched_keys'])} weights have another shape than the "
            f"config, the first {key!r}: {list(stored)}; expected {list(wanted)}; pass another "
            f"{flag}, or correct its config.json"
        )
    missing = report["missing_keys"]
    if missing:
        raise UsageError(
            f"{flag} {shown}: lacks {len(missing)} weights, the first {min(missing)!r}; expected "
            "a whole checkpoint, with the head of a causal LM; copy or download it again, or save "
            "it again with AutoModelForCausalLM"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        check_quantization(model.config, f"{flag} {shown}")
        with (
            opening_errors(shown, flag, "model", _QUANTIZED),
            memory_errors(),
            torch.no_grad(),
        ):
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


def open_empty(
    source: Path, flag: str, *, attention: str | None = None, name: str | None = None
) -> Any:
    """A causal LM on device `meta`, after every check of its files but that of the numbers.

    Names and shapes of the weights are compared with the config, and a quantiser is looked for, so
    that what would not open later is refused before any work.

    Args:
        source: a folder.
        flag: the option that named it.
        attention: attention implementation; by default transformers chooses.
        name: the checkpoint's name in errors; by default `source`.

    Raises:
        UsageError: the checkpoint would not open.
    """
    config = open_config(source, flag)
    quantised = getattr(config, "quantization_config", None)
    if quantised is None and find_spec("accelerate") is not None:
        return open_model(source, flag, attention=attention, device_map="meta", name=name)
    if quantised is not None:
        check_quantization(config, f"{flag} {source if name is None else name}")
    return build_model(config, flag, device="meta", attention=attention)


def _check_folder(folder: Path, flag: str) -> None:
    """Refuse a folder of pickles, or whose weights or code transformers would take from elsewhere.

    Raises:
        UsageError: its only weights are pickles; it holds a whole model beside an adapter, whose
            base model transformers would open in its place; or its config names code of the hub.
    """
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles and next(folder.glob("*.safetensors"), None) is None:
        raise UsageError(
            f"{flag} {folder}: no .safetensors file, only the pickle {escape_control(pickles[0])}, "
            "which can run code and is never read; expected weights in safetensors; convert them "
            f"with save_pretrained if you trust their origin, or pass another {flag}"
        )
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).exists():
            _check_base(folder, flag)
        return
    if (folder / ADAPTER_CONFIG).exists():
        raise UsageError(
            f"{flag} {folder}: holds config.json and adapter_config.json, and transformers would "
            "open the base model that the adapter names; expected one of them; remove the other"
        )
    open_config(folder, flag)


def _check_base(folder: Path, flag: str) -> None:
    """Refuse an adapter without a base model that can be opened.

    Raises:
        UsageError: it names none, one that is no model, or one of pickles.
    """
    base = read_adapter_settings(folder, f"{flag} {folder}").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UsageError(
            f"{flag} {folder}: its {ADAPTER_CONFIG} names no base model (got {value_text(base)}); "
            "expected a folder or a hub id in base_model_name_or_path; add it, or pass a "
            "whole model"
        )
    base_flag = f"{flag} {folder}, base model"
    check_source(base, base_flag)
    check_reachable(base, base_flag)
    _check_folder(Path(base), base_flag)


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
    read_adapter_settings(folder, f"{flag} {shown}")
    try:
        with warnings.catch_warnings():  # on device `meta`, of every weight
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(model, folder, trust_remote_code=False)
    except (CaskdError, MemoryError):
        raise
    except Exception as error:  # peft and safetensors raise every kind for damaged files
        check_readable(error, f"{flag} {shown}")
        raise _does_not_fit(shown, flag, reason(error)) from error
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        stored = set(weights.keys())
    # peft skips weights that match no layer, and leaves layers without weights random.
    inside = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # Layers in front of an embedding or a head are stored with a copy of what they adapt.
    differing = {name for name in stored ^ set(inside) if ".base_layer." not in name}
    if differing:
        text = f"{len(differing)} weights differ, such as {min(differing)!r}"
        raise _does_not_fit(shown, flag, text)
    return adapted.get_base_model()


def _does_not_fit(shown: str | Path, flag: str, text: str) -> UsageError:
    return UsageError(
        f"{flag} {shown}: the adapter does not fit the model ({text}); expected the model that it "
        f"was trained on; pass another {flag} or another model"
    )
