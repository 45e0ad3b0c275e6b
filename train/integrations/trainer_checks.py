"""What CascadeTrainer refuses: settings of transformers' Trainer that it would ignore."""

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from caskd.store.errors import UsageError
from caskd.train.integrations.store_dataset import StoreDataset

IGNORED_ARGUMENTS: MappingProxyType[str, Any] = MappingProxyType(
    {
        "label_smoothing_factor": 0.0,
        "group_by_length": False,
        "train_sampling_strategy": "random",
        "length_column_name": "length",
        "data_seed": None,
        "label_names": None,
        "average_tokens_across_devices": True,
        "auto_find_batch_size": False,
        "torch_compile": False,
        "parallelism_config": None,
        "dataloader_drop_last": False,
        "dataloader_in_order": True,
        "eval_accumulation_steps": None,
        "eval_do_concat_batches": True,
        "eval_use_gather_object": False,
        "batch_eval_metrics": False,
        "include_for_metrics": [],
    }
)
"""Fields of TrainingArguments that the loss, the data or the evaluation of CascadeTrainer do not
read, with the only value that changes nothing. Releases of transformers differ in the fields."""

IGNORED_DATA_OPTIONS = MappingProxyType(
    {
        "split_batches": False,
        "dispatch_batches": None,
        "even_batches": True,
        "use_seedable_sampler": True,
    }
)
"""Fields of `accelerator_config`, likewise: a StoreDataset divides itself among ranks."""

IGNORED_HOOKS = ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics")
"""Arguments of Trainer that are never called: the loss is the objective's, and no logits exist."""


def check_settings(trainer: Any) -> None:
    """Refuse every setting of a Trainer that CascadeTrainer would ignore, by name.

    Raises:
        UsageError: one is set.
    """
    found = sorted(_ignored(trainer))
    if found:
        raise UsageError(
            f"CascadeTrainer: {', '.join(found)} would be ignored, expected the default; remove "
            "it, or use transformers' Trainer with StoreDataset"
        )
    if trainer.args.n_gpu > 1:
        raise UsageError(
            f"CascadeTrainer: got {trainer.args.n_gpu} GPUs in one process, expected one GPU per "
            "process; start it with torchrun --nproc-per-node, or set CUDA_VISIBLE_DEVICES"
        )


def check_positions(config: Any, dataset: StoreDataset) -> None:
    """Refuse examples in the student's tokens that may be longer than the student's positions.

    Raises:
        UsageError: names the length to pass.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if dataset.has_spans and longest is not None and dataset.longest > longest:
        raise UsageError(
            f"CascadeTrainer: StoreDataset has max_length {dataset.max_length}, and the student "
            f"has {longest:,} positions; expected at most as many; pass StoreDataset(..., "
            f"max_length={longest})"
        )


def _ignored(trainer: Any) -> Iterator[str]:
    """Text of each ignored setting, with its value."""
    for owner, prefix, names in (
        (trainer.args, "", IGNORED_ARGUMENTS),
        (
            getattr(trainer.args, "accelerator_config", None),
            "accelerator_config.",
            IGNORED_DATA_OPTIONS,
        ),
    ):
        for name, default in names.items():
            value = getattr(owner, name, default)
            value = getattr(value, "value", value)  # of an enum
            if value != default:
                yield f"{prefix}{name}={value!r}"
    for name in IGNORED_HOOKS:
        if getattr(trainer, name, None) is not None:
            yield name
