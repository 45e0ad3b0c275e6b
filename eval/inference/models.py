"""The model that answers: opened once, and described without any path of this machine."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from caskd.eval.answers import digest
from caskd.eval.config import PredictConfig
from caskd.models import weights_digest
from caskd.store.corpus import template_digest, tokenizer_digest
from caskd.store.errors import UsageError


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, ready for greedy decoding."""

    model: Any
    tokenizer: Any
    stop_ids: tuple[int, ...]
    """Ids that end an answer: those of the generation config and of the tokenizer."""
    identity: dict[str, Any]
    """Name, revision, digests and sizes."""

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model was built for, if it says."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def load_model(config: PredictConfig) -> LoadedModel:
    """Open model and tokenizer.

    Raises:
        UsageError: the model cannot be opened, or the device is not there.
    """
    device = _device(config.device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            config.model, dtype=config.dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"cannot open model {config.model}: {reason} Expected a folder or id of a causal LM."
        ) from None
    stop_ids = _stop_ids(model, tokenizer)
    # Greedy means greedy: no repetition penalty or temperature from the model's own settings.
    # generate() takes every setting that it is not given from here.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*stop_ids, 0)[0]
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(stop_ids) or None, pad_token_id=pad
    )
    identity = _identity(config.model, model, tokenizer)
    return LoadedModel(model.eval().to(device), tokenizer, stop_ids, identity)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"got --device {name}, expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"got --device {name}, but there is no CUDA device; use --device cpu")
    return device


def _stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    found = model.generation_config.eos_token_id
    ids = list(found) if isinstance(found, list | tuple) else [found]
    ids.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(int(token) for token in ids if token is not None))


def _identity(name: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    folder = Path(name)
    settings = model.config.to_dict()
    for surrounding in ("_name_or_path", "transformers_version"):
        settings.pop(surrounding, None)
    total = sum(p.numel() for p in model.parameters())
    embedding = {
        p
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
        if m
        for p in m.parameters()
    }
    return {
        "name": folder.resolve().name if folder.exists() else name,
        "revision": getattr(model.config, "_commit_hash", None),
        "weights_digest": weights_digest(folder) if folder.is_dir() else None,
        "config_digest": digest(json.dumps(settings, sort_keys=True, default=str).encode()),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "template_digest": template_digest(tokenizer) if tokenizer.chat_template else None,
        "num_parameters": total,
        "num_non_embedding_parameters": total - sum(p.numel() for p in embedding),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
