"""A model with its tokenizer, ready to answer, and its identity without any local path."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.models.batch_groups import BatchGroups
from caskd.models.decoding.left_padding import decoding_groups
from caskd.models.devices import memory_errors, pick_device
from caskd.models.digests import config_digest, weights_digest
from caskd.models.forward_probe import check_causal
from caskd.models.opening import (
    config_folder,
    open_config,
    open_generation_config,
    open_model,
    open_tokenizer,
    quantization_of,
)
from caskd.models.parameters import count_parameters
from caskd.models.vocabulary import call_id, stop_ids
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
    groups: BatchGroups
    """Which prompts may share a batch."""
    call_id: int | None = None
    """Id of its CALL token, the last of its vocabulary, which no answer contains; None: it has
    none."""
    call_rule: str | None = None
    """The `--delegate` rule that trained the token; None where config.json does not name it."""

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model was built for, if its config names one."""
        return max_positions_of(self.model.config)


def max_positions_of(config: Any) -> int | None:
    """Longest sequence that a model was built for, if its config names one."""
    longest: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if longest is None or longest > 0 else None  # XLNet has -1 for no limit


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
    check_causal(model, f"{flag} {source}")
    # transformers opens an adapter with the generation config of its base model, which lacks the
    # ids that the adapter's own folder names.
    ends = stop_ids(tokenizer, model.generation_config, open_generation_config(source))
    # Greedy decoding only: generate() would take a repetition penalty, a temperature and every
    # other setting that it is not given from the model's own generation config.
    call = call_id(model.config, tokenizer, f"{flag} {source}")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*ends, 0)[0]
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        suppress_tokens=None if call is None else [call],
    )
    identity = model_identity(source, model, tokenizer)
    name = f"{identity['name']} ({type(model).__name__})"
    groups = decoding_groups(model, ends, f"{flag} {source}", name)
    rule = getattr(model.config, "call_token_rule", None)
    return LoadedModel(model, tokenizer, ends, identity, groups, call, rule)


def model_identity(source: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Name, revision, digests and sizes of a model, in JSON types.

    Args:
        source: a folder or a hub id.
        model: opened from it, with its weights or on device `meta`.
        tokenizer: opened from it.
    """
    folder = Path(source)
    configured = config_folder(source)
    # A folder that holds only an adapter has no config.json: the base model's is meant.
    described = configured or config_folder(model.config._name_or_path)
    count = count_parameters(model)
    identity: dict[str, Any] = {
        "name": folder.resolve().name if folder.exists() else source,
        "revision": None if folder.is_dir() or configured is None else configured.name,
        "weights_digest": weights_digest(folder) if folder.is_dir() else None,
        "config_digest": None if described is None else config_digest(described),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "template_digest": template_digest(tokenizer) if tokenizer.chat_template else None,
        "num_parameters": count.total,
        "num_non_embedding_parameters": count.total - count.embedding,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if count.routed:
        identity["num_active_parameters"] = count.active
    # Where the config of the files names weights in fp8, those of the model may be dequantised.
    named = model.config if described is None else open_config(described, "model")
    if quantization := quantization_of(named):
        identity["quantization"] = quantization
    return identity
