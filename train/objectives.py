"""The objectives by name. This one table defines `--objective` and the loss; it needs no torch.

For response tokens i with label y, student p_S, teacher p_L and label weight w, every objective is

    L = - sum_i a_i * ( w * log p_S(y_i) + (1 - w) * sum_v p_L(v) log p_S(v) )

They differ in w and in the rule of the mask a_i only. `alm` and `cat-alm` have the teacher term of
`caskd.train.loss.span_loss`, over spans of bytes in place of tokens. To add one, add a line to
`OBJECTIVES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

from caskd.store.errors import UsageError, given_without
from caskd.store.format import ROW_KINDS

MaskRule = Literal["all", "either", "teacher", "student"]
"""Rules that `caskd.train.loss.keep_mask` applies."""

AnyRule = MaskRule | Literal["given"]
"""`given`: the caller passes the mask, such as that of a random-* objective or of --mask."""

Tail = Literal["bucket", "renormalise", "drop", "none"]
TAILS: tuple[Tail, ...] = get_args(Tail)

TAILS_OF_KIND = MappingProxyType(
    {kind.name: TAILS[:3] if kind.has_tail else TAILS[3:] for kind in ROW_KINDS.values()}
)
"""Store kind -> the tail modes that fit it, the default first. Samples of the whole distribution
have no tail; a top-k always has one."""


DelegateRule = Literal[
    "loss", "rho", "gap", "unacceptable", "random", "fact-loss", "fact-unacceptable", "l2d", "ova"
]
"""Which rows teach the CALL token: those with the highest scores; l2d and ova teach it on all rows
whether the teacher is right, beside the label."""

FACTS: Mapping[DelegateRule, DelegateRule] = MappingProxyType(
    {"fact-loss": "loss", "fact-unacceptable": "unacceptable"}
)
"""Rules on marked rows alone, and the rule whose score these have."""

LEARNS_TO_DEFER: tuple[DelegateRule, ...] = ("l2d", "ova")
"""Rules without a share: losses that are consistent for the choice between student and teacher."""

DELEGATE_SHARE = 0.15
"""Default share of the rows to delegate (arXiv 2602.12005)."""


ConfidenceRule = Literal["gatekeeper", "cascade-gatekeeper"]
"""Rows on which the student is trained to be unsure: where its first choice is not the label; of
these, where the teacher's is."""

CONFIDENCE_WEIGHT = 0.1
"""Default weight of the confidence term."""


@dataclass(frozen=True)
class Confidence:
    """A term that makes the student unsure where it is wrong (Gatekeeper, arXiv 2502.19335).

    With the weight A and the uniform distribution U over the V columns of the student's head, the
    loss of a row is (1 - A) times the objective, plus A * KL(p_S || U) where the rule holds. The
    paper's alpha is 1 - A, and its loss is that of objective `cat-xent-s`.
    """

    rule: ConfidenceRule
    weight: float
    """In [0, 1). With 0 the term is measured, and loss and gradient are the objective's."""


@dataclass(frozen=True)
class Objective:
    """The mask rule and the weight of the label term."""

    rule: AnyRule
    w: float
    matches_spans: bool = False
    """The teacher term matches likelihoods of spans of bytes, not the teacher's top-k."""
    maps_topk: bool = False
    """With `matches_spans`: where a span is one token of both models, the teacher term is that of
    the teacher's top-k, mapped to the student's tokens by their bytes."""

    @property
    def has_teacher_term(self) -> bool:
        """Whether the loss has a teacher term."""
        return self.w < 1

    @property
    def needs_distribution(self) -> bool:
        """Whether the loss reads the teacher's top-k."""
        return self.w < 1 and not self.matches_spans

    @property
    def needs_teacher(self) -> bool:
        """Whether a row counts only if it has a teacher row."""
        return self.needs_distribution or self.rule in ("either", "teacher")

    @property
    def needs_keep(self) -> bool:
        """Whether the caller must pass the mask."""
        return self.rule == "given"


OBJECTIVES = MappingProxyType(
    {
        "xent": Objective("all", 1.0),
        "dist": Objective("all", 0.5),
        "cat-xent": Objective("either", 1.0),
        "cat-dist": Objective("either", 0.5),
        "cat-xent-l": Objective("teacher", 1.0),
        "cat-xent-s": Objective("student", 1.0),
        "cat-dist-l": Objective("teacher", 0.5),
        "cat-dist-s": Objective("student", 0.5),
        "random-xent": Objective("given", 1.0),
        "random-dist": Objective("given", 0.5),
        "alm": Objective("all", 0.0, matches_spans=True),
        "cat-alm": Objective("either", 0.0, matches_spans=True),
    }
)

# A Literal made from the table is unknown to a type checker, which sees plain text instead.
if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[tuple(OBJECTIVES)]
    """Names of the table, as `--objective` lists them."""

MatchName = Literal["likelihood", "bytes-1to1"]
MATCHES: tuple[MatchName, ...] = get_args(MatchName)
"""Teacher terms of an objective that matches spans, the default first: the likelihood of each span,
or `Objective.maps_topk`."""


def resolve_objective(
    objective: str | Objective, w: float | None = None, match: MatchName = "likelihood"
) -> Objective:
    """Look up an objective by its name, and replace its label weight by `w` where that is given.

    Args:
        objective: a name, or an objective as it is.
        w: label weight.
        match: what an objective that matches spans matches.

    Raises:
        UsageError: the name is not in `OBJECTIVES`, or the label weight is outside [0, 1].
    """
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise UsageError(
                f"objective {objective!r}: unknown; expected one of {', '.join(OBJECTIVES)}; "
                "choose one of these"
            )
        objective = OBJECTIVES[objective]
    w = objective.w if w is None else float(w)
    if not 0 <= w <= 1:
        raise UsageError(
            f"w {w}: expected a label weight from 0 (teacher only) to 1 (label only); pass a "
            "weight in this range"
        )
    return replace(objective, w=w, maps_topk=match != MATCHES[0] or objective.maps_topk)


def weight_contradiction(name: str, w: float | None, flag: str, objective_flag: str) -> str | None:
    """What is wrong with a label weight below 1 of an objective that is the label term alone.

    Args:
        flag: how the user names the weight.
        objective_flag: how the user names the objective.

    Returns:
        None if the weight is not given or fits the name.
    """
    if w is None or w >= 1 or OBJECTIVES[name].has_teacher_term:
        return None
    rule = OBJECTIVES[name].rule
    other = next(n for n, o in OBJECTIVES.items() if o.rule == rule and o.has_teacher_term)
    return (
        f"{flag} is {w:g}, but {objective_flag} {name} is the label term alone, whose weight is 1; "
        f"omit {flag}, or pass {objective_flag} {other}, which adds the teacher term"
    )


def delegate_contradiction(
    rule: DelegateRule | None,
    share: float | None,
    *,
    objective: str,
    lora_rank: int | None,
    init_from: object,
) -> str | None:
    """What is wrong with the options of a run that trains a CALL token; None if nothing is."""
    if rule is None:
        given = f"--delegate-share {share}"
        return None if share is None else given_without(given, "--delegate RULE")
    if share is not None and not 0 < share < 1:
        return (
            f"--delegate-share {share:g}: expected more than 0 and less than 1; pass a share in "
            "this range, or omit --delegate"
        )
    if rule in LEARNS_TO_DEFER and share is not None:
        return f"--delegate {rule} reads no share; got --delegate-share {share:g}; omit it"
    if rule in LEARNS_TO_DEFER and objective != "xent":
        return (
            f"--objective {objective}: --delegate {rule} is an objective over labels itself; "
            "expected xent; pass --objective xent"
        )
    if OBJECTIVES[objective].matches_spans:
        return _not_over_tokens(f"--delegate {rule}", objective)
    if lora_rank is not None:
        return (
            f"--delegate {rule}: --lora-rank {lora_rank} freezes the head, which has the CALL "
            "column; expected a student whose weights are trained; omit --lora-rank"
        )
    if init_from is not None:
        return (
            f"--delegate {rule}: --init-from {init_from} has weights without a CALL column; run "
            "caskd export on that run, and pass the exported model as --student"
        )
    return None


def _not_over_tokens(given: str, objective: str) -> str:
    return (
        f"{given}: --objective {objective} matches spans of text; expected an objective over "
        "tokens, and a student with the teacher's tokenizer; pass --objective xent or dist"
    )


def confidence_contradiction(
    rule: ConfidenceRule | None,
    weight: float | None,
    *,
    objective: str,
    delegate: DelegateRule | None,
) -> str | None:
    """What is wrong with the options of a confidence term; None if nothing is."""
    if rule is None:
        given = f"--confidence-weight {weight}"
        return None if weight is None else given_without(given, "--confidence RULE")
    if weight is not None and not 0 <= weight < 1:
        return (
            f"--confidence-weight {weight:g}: expected at least 0 and less than 1, the share of "
            "the confidence term in the loss; pass a weight in this range, or omit --confidence"
        )
    if OBJECTIVES[objective].matches_spans:
        return _not_over_tokens(f"--confidence {rule}", objective)
    if delegate is not None:
        return (
            f"--confidence {rule} does not combine with --delegate {delegate}, which replaces the "
            "loss of the same rows; expected one of the two; omit one"
        )
    return None


def resolve_unmasked(
    name: str, w: float | None, user: str, match: MatchName = "likelihood"
) -> Objective:
    """`resolve_objective`, for a caller that passes no mask to the loss.

    Args:
        user: the caller's name, for the error.
        match: as of `resolve_objective`.

    Raises:
        UsageError: as `resolve_objective`, the objective needs a mask from the caller, or the
            weight contradicts its name.
    """
    objective = resolve_objective(name, w, match)
    if objective.maps_topk and not objective.matches_spans:
        raise UsageError(
            f"{user}: match {match!r} with objective {name!r}, which matches no spans; expected "
            "alm or cat-alm; omit match"
        )
    contradiction = weight_contradiction(name, w, "w", "objective")
    if contradiction is not None:
        raise UsageError(f"{user}: {contradiction}")
    if objective.needs_keep:
        raise UsageError(
            f"{user}: objective {name!r} keeps as many rows as another run; expected caskd train, "
            "which alone reads that run (--keep-fraction-from); choose another objective here, or "
            f"in your own loop pass {name.removeprefix('random-')!r} and keep=MASK to "
            "cascade_aware_loss"
        )
    return objective


def check_known(
    name: str,
    known_as: Mapping[str, str],
    objective: Objective,
    tail: Tail | None,
    confidence: ConfidenceRule | None = None,
) -> None:
    """Refuse a store that lacks what an objective reads.

    Args:
        name: of the store, for the error.
        known_as: its capture fields.
        objective: to train with.
        tail: the tail mode; None if nothing reads the tail.
        confidence: rule of the confidence term; None without one.

    Raises:
        UsageError: names the capture field and what to pass instead.
    """
    if known_as["argmax"] == "unknown" and confidence == "cascade-gatekeeper":
        raise UsageError(
            f"--store {name}: capture.argmax is unknown, and --confidence {confidence} reads the "
            "teacher's argmax; expected a rule without it; pass --confidence gatekeeper, or a "
            "store that caskd captured"
        )
    if known_as["argmax"] == "unknown" and objective.rule in ("either", "teacher"):
        raise UsageError(
            f"--store {name}: capture.argmax is unknown, and the objective's mask reads the "
            "teacher's argmax; expected a mask without it; pass --objective xent, dist, "
            "cat-xent-s or cat-dist-s"
        )
    if known_as["tail"] == "unknown" and objective.needs_distribution and tail == "bucket":
        raise UsageError(
            f"--store {name}: capture.tail is unknown, and --tail bucket reads the teacher's "
            "tail_mass; expected another tail mode; pass --tail renormalise or --tail drop"
        )


def resolve_tail(tail: Tail | None, kind: str) -> Tail:
    """The tail mode to use with a store of this kind; None is the kind's default.

    Raises:
        UsageError: the tail mode does not fit the kind.
    """
    fitting = TAILS_OF_KIND[kind]
    if tail is None:
        return fitting[0]
    if tail not in fitting:
        holds = (
            "a top-k, which has a tail"
            if ROW_KINDS[kind].has_tail
            else "samples of the teacher's whole distribution, which have no tail"
        )
        raise UsageError(
            f"--tail {tail}: the store holds {holds}; expected {' or '.join(fitting)}; "
            f"omit --tail for {fitting[0]}"
        )
    return tail
