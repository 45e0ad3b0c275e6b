"""`CascadeTrainer`: transformers' Trainer with the cascade-aware loss.

Legend: B examples, T tokens, N rows, H hidden width.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from caskd.models import (
    SplitModel,
    check_causal,
    check_matrix,
    check_split,
    forget_lengths,
    inputs_of,
    masked_groups,
)
from caskd.store.errors import UsageError
from caskd.store.format import TOPK
from caskd.train.integrations.items import TEACHER, num_terms, spans_of
from caskd.train.integrations.store_dataset import StoreDataset
from caskd.train.integrations.trainer_checks import check_positions, check_settings
from caskd.train.loss import LossSums, TeacherRows, cascade_aware_loss, span_loss
from caskd.train.metrics import step_metrics
from caskd.train.model import SUM_NAMES, shared_adapter, text_notes
from caskd.train.objectives import Tail, resolve_objective, resolve_tail, resolve_unmasked

FLAG = "CascadeTrainer"


class CascadeTrainer(Trainer):  # type: ignore[misc]
    """A transformers Trainer that trains on stores.

    Its datasets are `StoreDataset`s, with `batch_size` equal to the per-device batch size. The
    training set must be endless (`num_epochs=None`), and `max_steps` ends the training. The loss of
    an optimizer step is the sum over its rows divided by their number, over all micro-batches and
    ranks; so is that of an evaluation. Logs contain the metrics of the cascade besides the
    Trainer's. Settings of the Trainer that would be ignored are refused by name. Parameters must be
    whole outside the forward; for ZeRO-3, use `caskd train`.

    Args:
        objective: name of the objective; see `cascade_aware_loss`.
        w: weight of the label term; None is the objective's default.
        tail: how to treat the teacher's probability outside its top-k; by default `bucket`, and
            `none` for a sampled store.
        *args: passed to Trainer.
        **kwargs: passed to Trainer.
    """

    def __init__(
        self,
        *args: Any,
        objective: str = "cat-dist",
        w: float | None = None,
        tail: Tail | None = None,
        **kwargs: Any,
    ) -> None:
        chosen = resolve_unmasked(objective, w, FLAG)  # checked here, not at the first step
        kwargs.setdefault("data_collator", StoreDataset.collate)
        super().__init__(*args, **kwargs)
        check_settings(self)
        self.objective, self.w = objective, w
        kind = getattr(self.train_dataset or self.eval_dataset, "kind", TOPK.name)
        self.tail = resolve_tail(tail, kind)
        for dataset in _store_datasets(self.train_dataset, self.eval_dataset):
            dataset.check_objective(chosen, FLAG)
            if not dataset.has_spans:
                dataset.check_tail(self.tail)
        self.model_accepts_loss_kwargs = True  # the loss is divided once, by rows, in compute_loss
        self._sums: LossSums | None = None  # of the rows since the last log
        if self.is_fsdp_enabled or _stage_of(self) == 3:
            raise UsageError(
                "CascadeTrainer: the head is sharded among ranks (FSDP or ZeRO-3); expected a "
                "whole one; use ZeRO 0 to 2 here, or caskd train"
            )
        plain = _plain_model(self.accelerator.unwrap_model(self.model))
        self._split = split = SplitModel(plain, FLAG)
        check_split(plain, split)
        check_matrix(split)
        check_causal(split, FLAG)
        for dataset in _store_datasets(self.train_dataset, self.eval_dataset):
            if hasattr(self.processing_class, "get_vocab"):
                dataset.check_tokenizer(self.processing_class, FLAG)
            check_positions(plain.config, dataset)
            _check_batches(split, dataset)
            if self.is_world_process_zero() and not dataset.has_spans:
                self._warn_of_text(dataset)
        self._warn_of_many_epochs()

    def _warn_of_many_epochs(self) -> None:
        if not isinstance(self.train_dataset, StoreDataset) or self.args.max_steps < 1:
            return
        lines = self.train_dataset.many_epochs(
            steps=self.args.max_steps,
            batch=self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size,
            flags=("max_steps", "a global batch of"),
        )
        for line in lines:
            warnings.warn(f"{FLAG}: {line.removeprefix('warning: ')}", stacklevel=3)

    def _warn_of_text(self, dataset: StoreDataset) -> None:
        """Warn where the student's end tokens, BOS or template differ from the stores'."""
        tokenizer = getattr(self, "processing_class", None)
        plain = _plain_model(self.accelerator.unwrap_model(self.model))
        for note in text_notes(dataset.opened, tokenizer, plain.generation_config):
            warnings.warn(f"{FLAG}: {note}", stacklevel=3)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training set, which divides itself among ranks and workers.

        Raises:
            UsageError: the training set ends. The Trainer would repeat it in the same order.
        """
        if getattr(self.train_dataset, "num_epochs", None) is not None:
            raise UsageError(
                "CascadeTrainer: the training set has a number of epochs; expected an endless "
                "one; pass StoreDataset(..., num_epochs=None), and max_steps in TrainingArguments"
            )
        return self._loader(self.train_dataset, self._train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Batches of the evaluation set, which divides itself among ranks and workers.

        Raises:
            UsageError: the evaluation set never ends.
        """
        named = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        dataset = self.eval_dataset if named is None else named
        loader = self._loader(dataset, self.args.eval_batch_size)
        if dataset.num_epochs is None:
            raise UsageError(
                "CascadeTrainer: the evaluation set is endless (num_epochs=None), expected one "
                "that ends; pass StoreDataset(..., num_epochs=1)"
            )
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of a step, and its number of rows or spans over all ranks."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(num_terms(sample) for sample in samples), device=device)
        return samples, self.accelerator.gather(count).sum().clamp(min=1)

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss per row: of the whole step if its row count is given, else of this batch."""
        sums = self._loss_sums(self._hidden(model, inputs), inputs)
        if num_items_in_batch is None:
            loss = sums.loss / sums.num_rows.clamp(min=1)
        else:  # ranks average their gradients
            loss = sums.loss * self.accelerator.num_processes / num_items_in_batch
        if model.training:
            self._sums = sums.detach() if self._sums is None else self._sums + sums.detach()
        return (loss, {"loss": loss}) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss per row and the cascade's metrics, from sums over all batches and ranks.

        So they do not depend on batch sizes or ranks. Ranks may have unequal numbers of batches:
        they wait for each other after the last one only. So this runs the model without a wrapper,
        because DDP would exchange its buffers in every forward.
        """
        for wanted, dtype in (
            (self.args.fp16_full_eval, torch.float16),
            (self.args.bf16_full_eval, torch.bfloat16),
        ):
            if wanted and not self.is_in_train:
                self.model.to(dtype=dtype)
        self.model.to(self.args.device).eval()
        self.callback_handler.eval_dataloader = dataloader
        totals = torch.zeros(1 + len(SUM_NAMES), dtype=torch.float64, device=self.args.device)
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            with torch.no_grad():
                with self.accelerator.autocast():
                    hidden = self._hidden(self.model, inputs)
                sums = self._loss_sums(hidden, inputs)
            totals[0] += len(inputs["input_ids"])
            totals[1:] += torch.stack([value.double() for value in sums.tensors()])
            control = self.control  # type: ignore[has-type]
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, control)
        num_examples, *values = self.accelerator.reduce(totals).tolist()
        metrics = self._cascade_metrics(values, self.eval_dataset)
        named = {f"{metric_key_prefix}_{n}": x for n, x in metrics.items() if x is not None}
        return EvalLoopOutput(None, None, named, int(num_examples))

    def predict(self, *_: Any, **__: Any) -> Any:
        """Refused: whole logits are never computed.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "CascadeTrainer: predict needs whole logits, which are never computed; call evaluate, "
            "or save the model and run caskd predict"
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with keep_fraction, accuracies and KL of the training rows since the last log."""
        if "loss" in logs and self._sums is not None:
            totals = torch.stack([value.double() for value in self._sums.tensors()])
            totals = self.accelerator.reduce(totals)
            metrics = self._cascade_metrics(totals.tolist(), self.train_dataset)
            del metrics["loss"]
            logs = {**logs, **{name: x for name, x in metrics.items() if x is not None}}
            self._sums = None
        super().log(logs, *args, **kwargs)

    def _cascade_metrics(self, totals: list[float], dataset: Any) -> dict[str, float | None]:
        knows_argmax = getattr(dataset, "knows_argmax", True)
        sums = dict(zip(SUM_NAMES, totals, strict=True))
        has_spans = getattr(dataset, "has_spans", False)
        knows_topk = not has_spans and self.tail != "none"
        metrics = step_metrics(sums, knows_argmax=knows_argmax, knows_topk=knows_topk)
        return metrics | ({"tail_mass": None} if has_spans else {})

    def _loss_sums(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> LossSums:
        """The loss of a batch and its counts, from the last hidden states [B, T, H]."""
        split, spans = self._split, spans_of(inputs)
        index = inputs["gather_index"]  # [N]
        if spans is not None:
            return span_loss(
                hidden.flatten(0, 1)[index],
                split.weight,
                inputs["labels"].flatten()[index + 1],
                spans,
                objective=resolve_objective(self.objective, self.w),
                bias=split.bias,
                logit_softcap=split.form.softcap,
                logit_scale=split.form.scale,
            )
        names = [field.name for field in fields(TeacherRows)]
        return cascade_aware_loss(
            hidden.flatten(0, 1)[index],
            split.weight,
            inputs["labels"].flatten()[index + 1],
            TeacherRows(**{name: inputs.get(TEACHER + name) for name in names}),  # type: ignore[arg-type]
            objective=self.objective,
            w=self.w,
            tail=self.tail,
            bias=split.bias,
            logit_softcap=split.form.softcap,
            logit_scale=split.form.scale,
        )

    def _hidden(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Last hidden states [B, T, H], caught in the whole model's forward.

        Wrappers of the model (DDP, DeepSpeed, peft) work in the model's forward. So this calls the
        whole model, and a hook keeps what the head receives.
        """
        forget_lengths(self._split.model)
        with inputs_of(self._split.head) as caught:
            model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
            )
        return caught[0]

    def _loader(self, dataset: Dataset[Any], batch_size: int) -> DataLoader[Any]:
        if not isinstance(dataset, StoreDataset) or dataset.batch_size != batch_size:
            got = getattr(dataset, "batch_size", type(dataset).__name__)
            raise UsageError(
                f"CascadeTrainer: got a dataset with batch size {got}; expected the Trainer's "
                f"per-device batch size; pass StoreDataset(..., batch_size={batch_size})"
            )
        args = self.args
        return DataLoader(
            dataset,
            batch_size=batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
        )


def _plain_model(model: Any) -> Any:
    """The transformers model inside a peft wrapper, or the model itself.

    Raises:
        UsageError: the head has an adapter, or a module that shares its weight has.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = plain.get_output_embeddings()
    if hasattr(head, "base_layer") or hasattr(head, "original_module"):
        raise UsageError(
            "CascadeTrainer: the head has an adapter; expected a plain matrix; remove lm_head from "
            "target_modules and modules_to_save"
        )
    if (shared := shared_adapter(plain)) is not None:
        raise UsageError(
            f"CascadeTrainer: {shared[0]} has an adapter and the weight of {shared[1]}; expected "
            "tied weights without adapters; remove it from target_modules and modules_to_save"
        )
    return plain


def _store_datasets(*datasets: Any) -> Iterator[StoreDataset]:
    for dataset in datasets:
        named = dataset.values() if isinstance(dataset, Mapping) else [dataset]
        yield from (part for part in named if isinstance(part, StoreDataset))


def _check_batches(split: SplitModel, dataset: StoreDataset) -> None:
    """Refuse batches of a model that computes its examples differently in a batch than alone.

    Raises:
        UsageError: the model does, and the batch size exceeds 1.
    """
    groups = masked_groups(split, FLAG, lambda _: None)
    if groups.may_split(dataset.longest) and dataset.batch_size > 1:
        raise UsageError(
            f"{FLAG}: {split.architecture} produces different hidden states in a batch of "
            f"examples of up to {dataset.longest:,} tokens than one example at a time, and the "
            f"batch size is {dataset.batch_size}; expected 1: pass StoreDataset(..., batch_size=1) "
            "and a per-device batch size of 1, or use caskd train"
        )


def _stage_of(trainer: Any) -> int | None:
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return None if plugin is None else plugin.zero_stage
