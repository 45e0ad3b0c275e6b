"""The model that answers: opened once, and described without any path of this machine.

Legend: B examples of a batch, P prompt tokens after left padding, N new tokens, V vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from caskd.eval.config import PredictConfig
from caskd.eval.predictions import digest
from caskd.store.errors import UsageError
from caskd.store.vocabulary import tokenizer_digest
from caskd.store.weights import weights_digest


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


@dataclass(frozen=True)
class Answer:
    """The new tokens of one example, up to and with the first stop id."""

    token_ids: list[int]
    token_logprobs: list[float]


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
            f"--model {config.model}: {reason} Expected a folder or hub id of a causal LM."
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


@torch.inference_mode()
def decode_batch(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Answer]:
    """Greedy continuation of each prompt.

    Log-probabilities are log_softmax of the model's own logits in float32, over all V columns.
    """
    device, longest = loaded.model.device, max(map(len, prompts))
    pad = loaded.model.generation_config.pad_token_id
    # Padding stands on the left, so that every prompt ends where its answer begins; generate()
    # counts positions from the mask.
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    logprobs: list[torch.Tensor] = []

    def record(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        # generate() hands float32 logits [B, V] and takes their argmax next.
        logprobs.append(logits.max(dim=-1).values - logits.logsumexp(dim=-1))
        return logits

    output = loaded.model.generate(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        logits_processor=[record],
        max_new_tokens=max_new_tokens,
    )
    new_ids = output[:, longest:].tolist()  # [B, N]
    steps = torch.stack(logprobs, dim=1).tolist()  # [B, N], or one more where the stop is seen late
    return [_until_stop(*answer, loaded.stop_ids) for answer in zip(new_ids, steps, strict=True)]


def _until_stop(ids: list[int], logprobs: list[float], stop_ids: Sequence[int]) -> Answer:
    end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return Answer(ids[:end], logprobs[:end])


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
        "num_parameters": total,
        "num_non_embedding_parameters": total - sum(p.numel() for p in embedding),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
