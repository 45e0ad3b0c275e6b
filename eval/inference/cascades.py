"""`caskd predict --large`: the flags of a token cascade, its models and its rows.

A token cascade answers one example at a time, so that its answers cannot depend on a batch.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from caskd.eval.answers import CASCADE_COUNTS, TOKEN_CASCADE, Predictions, digest
from caskd.eval.config import PredictConfig
from caskd.eval.inference.requests import EvalExample
from caskd.eval.tasks import Task
from caskd.models.decoding import (
    TOKEN_RULES,
    LoadedModel,
    TokenCascade,
    TokenRouter,
    check_caches,
    check_pair,
    load_for_decoding,
    open_router,
)
from caskd.store.errors import UsageError

_DEFAULTS = {"alpha": 0.2, "p_th": 0.01}
_GAMMA = 5
_FLIP_EXAMPLES = 8
_BOUNDS = {
    "alpha": (0.0, 1.0, "a cost from 0 to 1"),
    "threshold": (0.0, math.inf, "nats, 0 or more"),
    "p_th": (0.0, math.inf, "a probability, 0 or more (above 1 no token passes)"),
    "call_threshold": (-math.inf, math.inf, "finite nats"),
}
_ROUTER_BOUNDS = (0.0, 1.0, "a probability from 0 to 1")
_CALIBRATION_PROMPTS = 32


@dataclass(frozen=True)
class RuleFlags:
    """A token rule with its numbers."""

    rule: str
    setting: float | None
    """The number that the rule reads; None for a rule without one."""
    gamma: int | None
    """Tokens of a draft; None for a rule that needs no drafts."""
    budget: float | None = None
    """Share of tokens for the large model, from which the number is measured; None if it is
    given."""
    calibration: Mapping[str, int] | None = None
    """Prompts and tokens from which it was measured."""
    router: TokenRouter | None = None
    """For the rule `router`."""

    @property
    def fields(self) -> dict[str, Any]:
        """For the metadata: the rule, its number by name, gamma."""
        name = TOKEN_RULES[self.rule].setting
        return {
            "rule": self.rule,
            **({name: self.setting} if name else {}),
            **({"gamma": self.gamma} if self.gamma else {}),
            **({"call_budget": self.budget} if self.budget else {}),
            **({"calibration": dict(self.calibration)} if self.calibration else {}),
            **({"router": self._router_fields(self.router)} if self.router else {}),
        }

    def _router_fields(self, router: TokenRouter) -> dict[str, Any]:
        """Which router it is, and the share of tokens that it sent on its own test split."""
        own = self.setting == router.threshold
        return {
            **{name: router.description[name] for name in ("label", "store", "digest")},
            "offline_share": router.description["test"]["routed_share"] if own else None,
        }


def rule_flags(config: PredictConfig) -> RuleFlags | None:
    """The token rule that the flags ask for; None for the answers of one model.

    Raises:
        UsageError: a flag is missing, has no meaning for the rule, or is out of its bounds.
    """
    name = config.token_rule
    if name is None or config.large is None:
        _check_none(config)
        return None
    if config.hidden is not None:
        raise UsageError(
            f"--hidden {config.hidden}: was given with --large; expected the hidden states of one "
            "model; omit one of the two"
        )
    rule = TOKEN_RULES[name]
    _check_budget(config)
    for other in _BOUNDS:
        if other != rule.setting and getattr(config, other) is not None:
            expected = _flag(rule.setting) if rule.setting else "no number"
            raise UsageError(
                f"{_flag(other)} {getattr(config, other):g}: rule {name} does not read it; "
                f"expected {expected} with this rule; omit {_flag(other)}"
            )
    if config.gamma is not None and not rule.reads_large:
        raise UsageError(
            f"--gamma {config.gamma}: rule {name} reads the small model alone and drafts nothing; "
            "expected a rule of both models; omit --gamma"
        )
    gamma = _GAMMA if config.gamma is None else config.gamma
    if gamma < 1:
        raise UsageError(f"--gamma {gamma}: expected 1 or more; pass another number")
    router = _router(config)
    measured = config.call_budget is not None
    setting = _setting(config, name, router) if rule.setting and not measured else None
    return RuleFlags(
        name, setting, gamma if rule.reads_large else None, config.call_budget, router=router
    )


def _router(config: PredictConfig) -> TokenRouter | None:
    """The router of the rule `router`, None for any other."""
    reads = config.token_rule is not None and TOKEN_RULES[config.token_rule].score == "router"
    if reads and config.router is None:
        raise UsageError(
            f"--token-rule {config.token_rule}: has no router; expected the folder that caskd "
            "router fit wrote for --model; pass --router FOLDER"
        )
    if config.router is not None and not reads:
        raise UsageError(
            f"--router {config.router}: rule {config.token_rule} reads no router; expected "
            "--token-rule router; omit --router"
        )
    return None if config.router is None else open_router(config.router, _router_flag(config))


def _router_flag(config: PredictConfig) -> str:
    return f"--router {config.router}"


def _check_budget(config: PredictConfig) -> None:
    """Refuse a budget of another rule, beside a threshold, or out of its bounds."""
    budget = config.call_budget
    if budget is None:
        return
    if config.token_rule != "call" or config.call_threshold is not None:
        found = f"--token-rule {config.token_rule}"
        if config.call_threshold is not None:
            found = f"--call-threshold {config.call_threshold:g}"
        raise UsageError(
            f"--call-budget {budget:g}: was given with {found}; expected --token-rule call without "
            "a threshold, which is measured from the budget; omit one of the two"
        )
    if not 0.0 < budget < 1.0:
        raise UsageError(
            f"--call-budget {budget:g}: expected a share of tokens, more than 0 and less than 1; "
            "pass another number"
        )


def _check_none(config: PredictConfig) -> None:
    """Refuse flags of a token cascade without its two main ones."""
    names = ("large", "token_rule", *_BOUNDS, "call_budget", "gamma", "router")
    given = [name for name in names if getattr(config, name) is not None]
    if given:
        lacking = [_flag(n) for n in ("large", "token_rule") if getattr(config, n) is None]
        raise UsageError(
            f"{_flag(given[0])} {getattr(config, given[0])}: was given without "
            f"{' and '.join(lacking)}; expected a large model and a rule together; pass --large "
            f"MODEL --token-rule RULE, or omit {_flag(given[0])}"
        )


def _setting(config: PredictConfig, rule: str, router: TokenRouter | None) -> float:
    name = TOKEN_RULES[rule].setting
    assert name is not None, "called only for rules that read a number"
    given: float | None = getattr(config, name)
    default = _DEFAULTS.get(name) if router is None else router.threshold
    value = default if given is None else given
    if value is None:
        raise UsageError(
            f"--token-rule {rule}: has no {_flag(name)}; expected {_BOUNDS[name][2]}; "
            f"pass {_flag(name)} NUMBER{', or --call-budget SHARE' if rule == 'call' else ''}"
        )
    least, most, words = _BOUNDS[name] if router is None else _ROUTER_BOUNDS
    if not (least <= value <= most and math.isfinite(value)):
        raise UsageError(f"{_flag(name)} {value:g}: expected {words}; pass another number")
    return value


def open_cascade(config: PredictConfig, flags: RuleFlags, small: LoadedModel) -> TokenCascade:
    """Open the large model and join it with the small one.

    Raises:
        UsageError: it cannot be opened.
        IdentityError: the two cannot continue one text.
    """
    assert config.large is not None, "there are flags of a rule only with a large model"
    if TOKEN_RULES[flags.rule].score == "call" and small.call_id is None:
        raise UsageError(
            f"--token-rule {flags.rule}: --model {config.model} has no CALL token (call_token_id "
            "in config.json); expected a student of caskd train --delegate; pass its export, or "
            "another rule"
        )
    router = None if flags.router is None else flags.router.scorer(small, _router_flag(config))
    large = load_for_decoding(config.large, "--large", dtype=config.dtype, device=config.device)
    own_templates = config.chat_template is None
    check_pair(small, large, f"--large {config.large}", own_templates=own_templates)
    setting, gamma = flags.setting or 0.0, flags.gamma or 1
    return TokenCascade(small, large, flags.rule, setting, gamma, router=router)


def max_positions(small: LoadedModel, cascade: TokenCascade | None) -> int | None:
    """Longest sequence that every model supports, if a config names one."""
    models = [small] if cascade is None else [small, cascade.large]
    return min((n for n in (model.max_positions for model in models) if n), default=None)


def check_rolls_back(
    config: PredictConfig, cascade: TokenCascade, requests: Sequence[EvalExample]
) -> None:
    """Refuse models whose caches cannot go back over a rejected draft, before any answer.

    Raises:
        UsageError: one cannot.
    """
    longest = max(len(request.prompt) for request in requests) + config.max_new_tokens
    check_caches(cascade, (f"--model {config.model}", f"--large {config.large}"), longest)


def calibrated(
    cascade: TokenCascade,
    flags: RuleFlags,
    requests: Sequence[EvalExample],
    tasks: Mapping[str, Task],
    max_new_tokens: int,
) -> tuple[TokenCascade, RuleFlags]:
    """Measure the number of a rule for its budget; the same two where it is given.

    The small model alone answers the prompts whose digests come first, so that the number depends
    on neither the order of the data nor batches, workers and kills.

    Raises:
        UsageError: the small model's scores are not finite.
    """
    if flags.budget is None:
        return cascade, flags
    prompts = {digest(json.dumps(one.prompt).encode()): one for one in requests}
    chosen = [prompts[name] for name in sorted(prompts)[:_CALIBRATION_PROMPTS]]
    found = [
        score
        for one in chosen
        for score in cascade.own_scores(one.prompt, max_new_tokens, tasks[one.task].stop)
    ]
    if strange := sum(not math.isfinite(score) for score in found):
        raise UsageError(
            f"--call-budget {flags.budget:g}: the score of the small model's CALL token is not "
            f"finite at {strange:,} of {len(found):,} tokens; expected finite scores; pass another "
            "--model"
        )
    setting = budget_threshold(found, flags.budget)
    counts = {"prompts": len(chosen), "tokens": len(found)}
    return cascade.with_setting(setting), replace(flags, setting=setting, calibration=counts)


def budget_threshold(scores: Sequence[float], budget: float) -> float:
    """The threshold that about `budget` of the scores reach: halfway to the next lower score."""
    ordered = sorted(scores, reverse=True)
    num = round(budget * len(ordered))
    if num == 0:
        return round(ordered[0] + 1.0, 6)
    if num == len(ordered):
        return round(ordered[-1] - 1.0, 6)
    return round((ordered[num - 1] + ordered[num]) / 2, 6)


def cascade_metadata(
    small: LoadedModel, cascade: TokenCascade, flags: RuleFlags
) -> Mapping[str, Any]:
    """Metadata of the file: its kind, both models and the rule."""
    models = {"small": small.identity, "large": cascade.large.identity}
    return {
        "kind": TOKEN_CASCADE,
        "model": {
            "name": " + ".join(identity["name"] for identity in models.values()),
            "tokenizer_digest": small.identity["tokenizer_digest"],
            "num_parameters": sum(identity["num_parameters"] for identity in models.values()),
        },
        "token_cascade": {**models, **flags.fields},
    }


def cascade_lines(
    written: Predictions,
    cascade: TokenCascade,
    requests: Sequence[EvalExample],
    flags: RuleFlags,
) -> list[str]:
    """What the answers cost in tokens and forwards, and in inexact arithmetic the flip rate."""
    names = ("output_tokens", *CASCADE_COUNTS)
    totals = {name: int(written.numbers(name).sum()) for name in names}
    tokens = totals["output_tokens"]
    lines = [
        f"the large model chose {totals['num_large_tokens']:,} of {tokens:,} tokens "
        f"({totals['num_large_tokens'] / tokens:.1%})"
        + (
            f", accepted {totals['num_accepted']:,} of {totals['num_drafted']:,} drafted"
            if totals["num_drafted"]
            else ""
        )
        + f"; forwards: {totals['num_small_forwards']:,} small, "
        f"{totals['num_large_forwards']:,} large; positions computed: "
        f"{totals['num_small_computed']:,} small, {totals['num_large_computed']:,} large"
    ]
    if "expected_acceptance" in written.columns.column_names:
        weights = written.numbers("output_tokens")
        mean = np.average(written.numbers("expected_acceptance"), weights=weights)
        lines.append(f"a token drawn by the small model is accepted by the large one: {mean:.4f}")
    if flags.router is not None:
        share = flags.fields["router"]["offline_share"]
        offline = "unknown for this threshold" if share is None else f"{share:.1%}"
        lines.append(
            f"router: threshold {flags.setting:g}; large share offline (the router's test split) "
            f"{offline}, in these answers {totals['num_large_tokens'] / tokens:.1%}"
        )
    if cascade.drafts and not cascade.is_exact:
        lists = written.columns.column("token_ids").to_pylist()
        found = list(itertools.islice(zip(requests, lists, strict=True), _FLIP_EXAMPLES))
        flips = sum(cascade.num_flips(request.prompt, ids) for request, ids in found)
        total = sum(len(ids) for _, ids in found)
        lines.append(
            f"flip rate: {flips:,} of {total:,} tokens of the first {len(found)} answers "
            f"({flips / total:.2%}) would differ in one forward pass over the answer "
            f"({cascade.small.identity['dtype']})"
        )
    return lines


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
