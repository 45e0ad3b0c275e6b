"""The CALL token of a student: an id behind the vocabulary, a row of embedding and head.

Legend: V the teacher's vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from caskd.models import CALL_TOKEN, SplitModel
from caskd.store import StoreSpec, TeacherStore
from caskd.store.corpus import vocab_size
from caskd.store.errors import UsageError
from caskd.train.config import TrainConfig
from caskd.train.delegation.history import DelegationShare
from caskd.train.delegation.marks import read_marks
from caskd.train.objectives import DELEGATE_SHARE, FACTS, LEARNS_TO_DEFER, DelegateRule


def delegation_share(
    config: TrainConfig,
    stores: Sequence[TeacherStore],
    tokenizer: Any,
    *,
    one_vocabulary: bool,
    saved: Mapping[str, Any] | None,
) -> DelegationShare | None:
    """The share of delegated rows of a run, and the CALL token in the tokenizer.

    Args:
        config: the options.
        stores: of the run.
        tokenizer: the student's; it gets the CALL token.
        one_vocabulary: whether it is the teacher's.
        saved: counts of the checkpoint to resume from.

    Returns:
        None without --delegate.

    Raises:
        UsageError: the student has another vocabulary, a store lacks what the rule reads, or a
            corpus with marks is missing or wrong.
        IdentityError: the corpus with marks is not that of the store, or not that of the run.
        CorruptError: the saved counts are damaged.
    """
    rule = config.delegate
    if rule is None:
        return None
    if not one_vocabulary:
        raise UsageError(
            f"--delegate {rule}: --student {config.student} has another tokenizer than the "
            "teacher; expected one vocabulary, because the large model continues its tokens; pass "
            "another student"
        )
    for store in stores:
        _check_fields(rule, store.name, store.spec)
    marks = None
    if rule in FACTS:
        if not config.data:
            raise UsageError(
                f"--delegate {rule}: no --data; expected the corpus of --store, whose column "
                "'marks' has the spans of its facts; pass --data FILE"
            )
        marks = read_marks(stores, config.data)
    share = config.delegate_share or DELEGATE_SHARE
    column = add_call_token(tokenizer, config.student)
    return DelegationShare(rule, None if rule in LEARNS_TO_DEFER else share, column, saved, marks)


def _check_fields(rule: DelegateRule, name: str, spec: StoreSpec) -> None:
    known = spec.capture_fields
    needed = {"rho": ("label",), "gap": ("label", "argmax"), "l2d": ("argmax",)}
    needed["ova"] = needed["l2d"]
    for field in needed.get(rule, ()):
        if known[field] in ("unknown", "within_topk"):
            raise UsageError(
                f"--delegate {rule}: capture.{field} of --store {name} is {known[field]}; expected "
                "a store that knows it for every row; pass --delegate loss or unacceptable, or a "
                "store that caskd captured"
            )
    if FACTS.get(rule, rule) == "unacceptable" and not spec.row_kind.has_tail:
        raise UsageError(
            f"--delegate {rule}: --store {name} holds {spec.kind} rows; expected the teacher's "
            "top-k, which gives the probability of the student's choice; pass --delegate loss, "
            "rho or gap"
        )


def add_call_token(tokenizer: Any, student: str) -> int:
    """Add the CALL token to a student's tokenizer, in place, and return its id.

    Raises:
        UsageError: the tokenizer has such a token already, or gives it another id than V.
    """
    column = vocab_size(tokenizer)
    if CALL_TOKEN in tokenizer.get_vocab():
        raise UsageError(
            f"--student {student}: its tokenizer has a token {CALL_TOKEN} already; expected a "
            "vocabulary without it; pass the student as it was before its training with --delegate"
        )
    tokenizer.add_tokens([CALL_TOKEN], special_tokens=True)
    found = tokenizer.get_vocab().get(CALL_TOKEN)
    if found != column:
        raise UsageError(
            f"--student {student}: its tokenizer gives an added token id {found}; expected "
            f"{column}, the first id behind its vocabulary; pass a student whose tokenizer has no "
            "unused ids"
        )
    return column


@torch.no_grad()
def add_call_column(model: Any, column: int, student: str) -> None:
    """Give the CALL token its row of embedding and head: the mean of the rows before it.

    A row of padding behind the vocabulary is used where there is one; otherwise both grow by one.

    Raises:
        UsageError: the model cannot grow.
    """
    flag = f"--student {student}"
    if SplitModel(model, flag).num_ids <= column:
        model.resize_token_embeddings(column + 1, mean_resizing=False)
    split = SplitModel(model, flag)
    if split.num_ids <= column:
        raise UsageError(
            f"--delegate: embedding and head of {flag} ({split.architecture}) cannot grow to "
            f"{column + 1:,} rows; expected a model whose token embeddings can be resized; pass "
            "another student"
        )
    embedding = model.get_input_embeddings().weight
    rows = [embedding]
    if split.head.weight is not embedding:
        rows.append(split.head.weight)
    if split.bias is not None:
        rows.append(split.bias)
    for weight in rows:
        weight[column] = weight[:column].mean(0)
    model.config.call_token_id = column
