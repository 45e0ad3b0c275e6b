"""The student: a transformers causal LM that computes its loss inside its forward.

Legend: B examples, T tokens, N rows, H hidden width, V vocabulary of the student's head.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caskd.models import (
    BatchGroups,
    SplitModel,
    check_causal,
    check_class,
    check_matrix,
    check_split,
    describe_quantization,
    hidden_in_groups,
    masked_groups,
    open_config,
    open_empty,
    open_model,
    open_tokenizer,
)
from caskd.store.errors import UsageError
from caskd.train.data import MicroBatch, RowWeights, checked_weights
from caskd.train.delegation import Delegation
from caskd.train.loss import (
    Head,
    LossRows,
    LossSums,
    cascade_aware_loss,
    row_stats,
    span_loss,
    student_right,
)
from caskd.train.objectives import Confidence, Objective, Tail

FLAG = "--student"
SUM_NAMES = tuple(field.name for field in fields(LossSums) if field.name != "delegation")


@dataclass(frozen=True)
class LossOptions:
    """Options of the loss that are equal for all batches of a step."""

    objective: Objective
    tail: Tail
    delegation: Delegation | None = None
    """The CALL column; None if the student has none."""
    confidence: Confidence | None = None
    row_weights: RowWeights | None = None
    """The caller's rule of row weights; None without one."""


class StudentWithLoss(nn.Module):
    """A causal LM and the cascade-aware loss of its rows; in evaluation, measures of each row.

    `options` may change between steps.

    The forward reads the head's weight itself: under ZeRO-3 the weight is gathered only while the
    wrapped module runs (https://github.com/huggingface/trl/issues/3368).

    Args:
        model: the causal LM.
        options: of its loss.
        packs: whether its attention keeps packed examples apart, as `keeps_examples_apart` found.
        groups: which padded examples may share a forward; None: all.
    """

    def __init__(
        self,
        model: Any,
        options: LossOptions,
        *,
        packs: bool = False,
        groups: BatchGroups | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.split = SplitModel(model, FLAG)
        self.packs = packs
        self.groups = groups

    def forward(self, batch: MicroBatch) -> Any:
        """The summed loss of the batch's rows, and all of `SUM_NAMES` as float64 [S], detached.

        With a CALL column, the sums of `LossSums.delegation` stand behind them.

        In evaluation, the `row_stats` [N, len(ROW_STATS)].
        """
        hidden = self.hidden(batch.input_ids, batch.attention_mask, batch.position_ids)  # [B, T, H]
        hidden = hidden.flatten(0, 1)[batch.gather_index]  # [N, H]
        weight, bias = self.split.weight, self.split.bias
        softcap, scale = self.split.form.softcap, self.split.form.scale
        objective = self.options.objective
        if not self.training:
            whole_head = Head(weight, bias, softcap, scale)
            rows = LossRows(batch.labels, batch.teacher, None)
            # A mask over spans is no property of a row.
            rule = objective.rule if batch.spans is None else "given"
            delegation = self.options.delegation
            column = None if delegation is None else delegation.column
            return row_stats(hidden, whole_head, rows, rule, column)
        if batch.spans is not None:
            sums = span_loss(
                hidden,
                weight,
                batch.labels,
                batch.spans,
                objective=objective,
                bias=bias,
                logit_softcap=softcap,
                logit_scale=scale,
                keep=batch.keep if objective.needs_keep else None,
            )
            return sums.loss, torch.stack([value.detach().double() for value in sums.tensors()])
        sums = cascade_aware_loss(
            hidden,
            weight,
            batch.labels,
            batch.teacher,
            objective=objective,
            tail=self.options.tail,
            bias=bias,
            logit_softcap=softcap,
            logit_scale=scale,
            row_weights=self._row_weights(hidden, batch),
            keep=batch.keep if objective.needs_keep else None,
            delegation=self.options.delegation,
            delegate=batch.delegate,
            confidence=self.options.confidence,
        )
        return sums.loss, torch.hstack([value.detach().double() for value in sums.tensors()])

    @torch.no_grad()
    def _row_weights(self, hidden: Tensor, batch: MicroBatch) -> Tensor | None:
        """Weights [N] of the caller's rule, from hidden states [N, H]; None without a rule."""
        rule = self.options.row_weights
        if rule is None or batch.weighed is None:
            return None
        right = None
        if rule.needs_student:
            form = self.split.form
            head = Head(self.split.weight, self.split.bias, form.softcap, form.scale)
            right = student_right(hidden, head, batch.labels)
        return checked_weights(rule.name, rule.weights(batch.weighed, right))

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [B, T, H], the head's input."""
        if self.groups is not None and attention_mask is not None:
            return hidden_in_groups(self.split, self.groups, input_ids, attention_mask)
        return self.split.hidden(input_ids, attention_mask, position_ids)


def load_tokenizer(name: str) -> Any:
    """The student's tokenizer.

    Raises:
        UsageError: it cannot be opened.
    """
    return open_tokenizer(name, FLAG)


def check_config(name: str, vocab_size: int, longest: int) -> None:
    """Refuse a student that could not be trained on the store, before its weights are loaded.

    Args:
        name: of the student.
        vocab_size: of the store.
        longest: tokens of the longest example.

    Raises:
        UsageError: quantised weights, too few embeddings or positions, a class that caskd does not
            compute, weights that are not the config's, or a config that cannot be opened.
    """
    flag = f"{FLAG} {name}"
    config = open_config(name, FLAG)
    if quantized := describe_quantization(config):
        raise UsageError(
            f"{flag}: its weights are quantised ({quantized}), which can be neither trained nor "
            "exported with adapters of --lora-rank; expected weights in float32, bfloat16 or "
            "float16; pass the model before quantisation"
        )
    if Path(name).is_dir():  # the weights of a hub id are not downloaded for a plan
        model = open_empty(Path(name), FLAG)
        _check_num_embeddings(name, SplitModel(model, flag).num_ids, vocab_size)
    else:
        _check_num_embeddings(name, config.get_text_config().vocab_size, vocab_size)
    check_class(config, flag, longest)


def load_student(name: str, vocab_size: int) -> Any:
    """The student with its weights in float32.

    Args:
        name: folder or hub id.
        vocab_size: tokens that its embedding must have rows for.

    Raises:
        UsageError: no causal LM, weights missing, an embedding narrower than the vocabulary, a
            head that is more than a matrix, a bias, a scale and a cap, or a model that sees later
            tokens.
    """
    model = open_model(name, FLAG, dtype="float32")
    check_width(name, model, vocab_size)
    split = SplitModel(model, f"{FLAG} {name}")
    check_split(model, split)
    check_matrix(split)
    check_causal(split, split.flag)
    return model


def student_groups(
    name: str, model: Any, longest: int, *, gathers: bool = False, quiet: bool = False
) -> BatchGroups:
    """Which examples of up to `longest` tokens may share a forward of the student.

    Args:
        name: of the student, for errors.
        model: the student, with whole weights.
        longest: tokens of the longest example of the run.
        gathers: whether ranks gather weights in each forward, so that all need equally many.
        quiet: print no warning; another rank does.

    Raises:
        UsageError: beyond a length at which its config changes the computation, the student sees
            later tokens; or batches may have to be divided although ranks gather weights.
    """
    split = SplitModel(model, f"{FLAG} {name}")
    shown = f"{FLAG} {name} ({type(model).__name__})"
    groups = masked_groups(split, shown, (lambda _: None) if quiet else None)
    if groups.may_split(longest) and gathers:
        raise UsageError(
            f"{shown}: produces different hidden states in a batch of up to {longest:,} tokens "
            "than one example at a time, and --zero-stage 3 needs equally many forwards on every "
            "rank; expected ranks with whole weights: pass --zero-stage 2, or another --student"
        )
    return groups


def check_width(name: str, model: Any, vocab_size: int) -> None:
    """Refuse a student with fewer embeddings than the vocabulary has tokens; more are fine.

    Raises:
        UsageError: the embedding or the head is too narrow.
    """
    _check_num_embeddings(name, SplitModel(model, f"{FLAG} {name}").num_ids, vocab_size)


def _check_num_embeddings(name: str, num_embeddings: int, vocab_size: int) -> None:
    if num_embeddings < vocab_size:
        raise UsageError(
            f"{FLAG} {name}: its embedding has {num_embeddings} rows, but the vocabulary "
            f"has {vocab_size} tokens; expected at least as many; resize the model with "
            "transformers' resize_token_embeddings"
        )


def recompute_activations(model: Any) -> None:
    """Turn on gradient checkpointing: the backward computes activations again."""
    if hasattr(model, "activation_checkpointing_enable"):  # transformers 5.2x deprecates the other
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
