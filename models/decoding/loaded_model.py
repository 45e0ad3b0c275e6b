"""A model with its tokenizer, ready to answer, and its identity without any local path."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.models.devices import memory_errors, pick_device
from caskd.models.digests import config_digest, weights_digest
from caskd.models.opening import config_folder, open_model, open_tokenizer
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
        """Longest sequence that the model was built for, if its config names one."""
        longest: int | None = getattr(
            self.model.config.get_text_config(), "max_position_embeddings", None
        )
        return longest


def load_for_decoding(
    source: str, flag: str, *, dtype: str = "auto", device: str = "auto"
) -> LoadedModel:
    """Open model and tokenizer.

    Args:
        source: a folder or a hub id.
        flag: the option that named it, for errors.
        dtype: name of the weights' dtype; `auto` is that of the files.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UsageError: the model cannot be opened or does not fit into memory, or the device is not
            present.
    """
    from transformers import GenerationConfig

    chosen = pick_device(device)
    tokenizer = open_tokenizer(source, flag)
    try:
        with memory_errors():
            model = open_model(source, flag, dtype=dtype).eval().to(chosen)
    except MemoryError as error:
        raise UsageError(
            f"{flag} {source}: the weights do not fit on {chosen} ({error}); expected a device "
            "with more memory; pass another --device, or --dtype bfloat16"
        ) from error
    stop_ids = _stop_ids(model, tokenizer)
    # Greedy decoding only: generate() would take a repetition penalty, a temperature and every
    # other setting that it is not given from the model's own generation config.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*stop_ids, 0)[0]
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(stop_ids) or None, pad_token_id=pad
    )
    identity = _identity(source, model, tokenizer)
    return LoadedModel(model, tokenizer, stop_ids, identity)


def _stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    found = model.generation_config.eos_token_id
    ids = list(found) if isinstance(found, list | tuple) else [found]
    ids.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(int(token) for token in ids if token is not None))


def _identity(source: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    folder = Path(source)
    configured = config_folder(source)
    # A folder that holds only an adapter has no config.json: the base model's is meant.
    described = configured or config_folder(model.config._name_or_path)
    total = sum(p.numel() for p in model.parameters())
    embedding = {
        parameter
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module
        for parameter in module.parameters()
    }
    return {
        "name": folder.resolve().name if folder.exists() else source,
        "revision": None if folder.is_dir() or configured is None else configured.name,
        "weights_digest": weights_digest(folder) if folder.is_dir() else None,
        "config_digest": None if described is None else config_digest(described),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "template_digest": template_digest(tokenizer) if tokenizer.chat_template else None,
        "num_parameters": total,
        "num_non_embedding_parameters": total - sum(p.numel() for p in embedding),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
