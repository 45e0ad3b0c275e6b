"""The student: a transformers causal LM whose loss is taken inside its forward.

Legend: B examples, T tokens, N rows, H hidden width, V vocabulary of the student's head.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from caskd.store import StoreSpec
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.errors import IdentityError, UsageError
from caskd.train.data import MicroBatch
from caskd.train.loss import (
    Head,
    LossRows,
    LossSums,
    cascade_aware_loss,
    row_stats,
)
from caskd.train.objectives import Objective, Tail

SUM_NAMES = tuple(field.name for field in fields(LossSums))


@dataclass(frozen=True)
class LossOptions:
    """The part of the loss that is the same for every batch of a step."""

    objective: Objective
    tail: Tail


class StudentWithLoss(nn.Module):
    """A causal LM and the cascade-aware loss of its rows; in evaluation, what it says of each.

    `options` may change between steps.

    The head's weight is read inside this forward, not outside: under ZeRO-3 it is there only while
    the wrapped module runs (https://github.com/huggingface/trl/issues/3368).

    Args:
        model: the causal LM.
        options: of its loss.
        packs: whether its attention keeps packed examples apart, as it was seen to.
    """

    def __init__(self, model: Any, options: LossOptions, *, packs: bool = False) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.softcap, self.scale = cap_and_scale(model)
        self.packs = packs

    def forward(self, batch: MicroBatch) -> Any:
        """The summed loss of the batch's rows, and all of `SUM_NAMES` as float64 [S], detached.

        In evaluation, the `row_stats` [N, len(ROW_STATS)].
        """
        hidden = self.hidden(batch.input_ids, batch.attention_mask, batch.position_ids)  # [B, T, H]
        hidden = hidden.flatten(0, 1)[batch.gather_index]  # [N, H]
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        objective = self.options.objective
        if not self.training:
            whole_head = Head(head.weight, bias, self.softcap, self.scale)
            rows = LossRows(batch.labels, batch.teacher, None)
            return row_stats(hidden, whole_head, rows, objective.rule)
        sums = cascade_aware_loss(
            hidden,
            head.weight,
            batch.labels,
            batch.teacher,
            objective=objective,
            tail=self.options.tail,
            bias=bias,
            logit_softcap=self.softcap,
            logit_scale=self.scale,
            keep=batch.keep if objective.needs_keep else None,
        )
        return sums.loss, torch.stack([value.detach().double() for value in sums.tensors()])

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [B, T, H], as the head takes them."""
        body = self.model.base_model
        places = {} if position_ids is None else {"position_ids": position_ids}
        output = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **places)
        hidden: Tensor = output.last_hidden_state
        return hidden


def cap_and_scale(model: Any) -> tuple[float | None, float | None]:
    """The soft cap and the factor that a model puts on its logits, where it has them."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies
    divisor = getattr(config, "logits_scaling", None)  # Granite divides
    if divisor is not None:
        scale = (1.0 if scale is None else scale) / divisor
    return getattr(config, "final_logit_softcapping", None), scale


def load_tokenizer(name: str, spec: StoreSpec) -> Any:
    """The student's tokenizer, which must mean the same tokens as the store's.

    Raises:
        UsageError: there is no model or tokenizer.
        IdentityError: its vocabulary is another one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--student {name}: no tokenizer could be loaded ({_first_line(error)}). "
            "Expected a transformers directory, or a hub id that is reachable."
        ) from None
    tokens = token_bytes(tokenizer)
    if vocab_digest(tokens) != spec.vocab_digest:
        raise IdentityError(
            f"--student {name}: its vocabulary ({len(tokens)} tokens, digest "
            f"{vocab_digest(tokens)[:12]}) is not the store's ({spec.vocab_size} tokens, digest "
            f"{spec.vocab_digest[:12]}, teacher {spec.teacher}). Token ids would be misread: "
            "take a student with the teacher's tokenizer, or precompute a store for this one."
        )
    return tokenizer


def check_config(name: str, vocab_size: int) -> None:
    """Refuse a model that says of itself that it is narrower than the vocabulary.

    Raises:
        UsageError: it does, or there is no model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name).get_text_config()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--student {name}: no model could be loaded ({_first_line(error)})."
        ) from None
    _check_num_embeddings(name, config.vocab_size, vocab_size)


def load_student(name: str, spec: StoreSpec) -> Any:
    """The student's weights in float32; nothing of the model's own code is run.

    Raises:
        UsageError: no causal LM, weights missing, an embedding narrower than the vocabulary, or a
            head that is more than a matrix, a bias, a scale and a cap.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--student {name}: no causal language model could be loaded ({_first_line(error)})."
        ) from None
    if info["missing_keys"]:
        raise UsageError(
            f"--student {name}: {len(info['missing_keys'])} weights are missing, "
            f"{sorted(info['missing_keys'])[0]} first. Expected a whole checkpoint."
        )
    check_width(name, model, spec.vocab_size)
    check_head(name, model)
    return model


def check_width(name: str, model: Any, vocab_size: int) -> None:
    """Refuse a student that has no column for some token; more columns than tokens are fine."""
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        _check_num_embeddings(name, embedding.weight.shape[0], vocab_size)


def _check_num_embeddings(name: str, num_embeddings: int, vocab_size: int) -> None:
    if num_embeddings < vocab_size:
        raise UsageError(
            f"--student {name}: its embedding has {num_embeddings} rows, but the vocabulary has "
            f"{vocab_size} tokens. Expected at least as many: resize it with transformers' "
            "resize_token_embeddings."
        )


@torch.no_grad()
def check_head(name: str, model: Any) -> None:
    """Refuse a model whose logits are not what `StudentWithLoss` takes them to be."""
    tokens = torch.arange(8)[None] % model.get_input_embeddings().weight.shape[0]
    student = StudentWithLoss(model, LossOptions(Objective("all", 1.0), "bucket"))
    logits = model.get_output_embeddings()(student.hidden(tokens, torch.ones_like(tokens)))
    logits = logits if student.scale is None else logits * student.scale
    cap = student.softcap
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    theirs = model(input_ids=tokens, use_cache=False).logits
    if not torch.allclose(logits, theirs, rtol=1e-4, atol=1e-4):
        raise UsageError(
            f"--student {name}: {type(model).__name__} computes its logits in a way that caskd "
            "does not know. Expected one matrix, with a bias, a scale and a soft cap at most."
        )


def recompute_activations(model: Any) -> None:
    """Keep no activations in the forward, and compute them again in the backward."""
    if hasattr(model, "activation_checkpointing_enable"):  # the older name warns since 5.2x
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
