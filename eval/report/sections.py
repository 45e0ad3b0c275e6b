"""The sections of the page, each a function of the analysis and the pictures."""

from collections.abc import Iterator, Mapping
from typing import Any

from caskd.eval.answers import Predictions
from caskd.eval.report.page import Heads, Picture, Section, Table, table
from caskd.eval.report.sentences import point_lines, questions_line
from caskd.eval.report.tables import rule_rows, summary_rows, token_cascade_rows
from caskd.eval.study import ALL_TASKS, Analysis, RoutingResult
from caskd.store.io import strip_control
from caskd.store.spacing import thin

_SUMMARY: Heads = {
    "small": ("small model", "text"), "task": ("task", "text"), "num_examples": ("examples", ",d"),
    "quality_small": ("small", ".4f"), "quality_large": ("large", ".4f"), "audc": ("AUDC", ".4f"),
    "random_audc": ("random", ".4f"), "oracle_audc": ("oracle", ".4f"),
    "percent_over_random": ("over random, %", "+.2f"), "apgr": ("APGR", ".3f"),
}  # fmt: skip
_AT_RATES: Heads = {
    "small": ("small model", "text"), "task": ("task", "text"),
    **{f"quality_at_{rate}": (f"at {rate} %", ".4f") for rate in (10, 20, 30, 50)},
    "best_quality": ("best", ".4f"),
    **{f"cpt_{share}": (f"CPT {share} %", ".1%") for share in (50, 80, 95)},
    "rate_for_large": ("rate for large", ".1%"),
}  # fmt: skip
_RULES: Heads = {
    "small": ("small model", "text"), "rule": ("rule", "text"), "audc": ("AUDC", ".4f"),
    "audc_low": ("95 % from", ".4f"), "audc_high": ("to", ".4f"), "apgr": ("APGR", ".3f"),
    "gain": ("minus first rule", "+.4f"), "gain_low": ("95 % from", "+.4f"),
    "gain_high": ("to", "+.4f"), "verdict": ("", "text"),
}  # fmt: skip
_CONFIDENCE: Heads = {
    "small": ("small model", "text"), "rule": ("rule", "text"), "auroc": ("AUROC", ".3f"),
    "aurc": ("AURC", ".4f"), "ece": ("ECE", ".3f"),
    "ece_isotonic": ("ECE, isotonic", ".3f"),
}  # fmt: skip
_DRIFT: Heads = {
    "small": ("small model", "text"), "rule": ("rule", "text"), "wanted_rate": ("wanted", ".0%"),
    "threshold": ("threshold", ".4g"), "rate_calibration": ("calibration", ".1%"),
    "rate_test": ("test", ".1%"), "drift": ("drift", "+.1%"),
    "quality_calibration": ("quality, calibration", ".4f"),
    "quality_test": ("quality, test", ".4f"),
}  # fmt: skip
_SAMPLES: Heads = {
    "score": ("score", ".4g"), "example": ("example", "text"),
    "task": ("task", "text"), "question": ("question", "long"), "reference": ("expected", "long"),
    "small_answer": ("small answers", "long"), "small_quality": ("quality", ".3g"),
    "large_answer": ("large answers", "long"), "large_quality": ("quality", ".3g"),
}  # fmt: skip
_GAIN_WORDS = {
    "the first is better": "better",
    "the second is better": "worse",
    "no difference shown": "no difference shown",
}

_TOKEN_CASCADES: Heads = {
    "label": ("token cascade", "text"), "rule": ("rule", "text"), "quality": ("quality", ".4f"),
    "large_share": ("tokens of large", ".1%"), "accepted_share": ("drafts accepted", ".1%"),
    "small_forwards_per_token": ("forwards a token, small", ".3f"),
    "large_forwards_per_token": ("large", ".3f"),
    "flops_per_token": ("FLOPs a token", ".3g"), "flops_per_example": ("FLOPs an example", ".3g"),
    "seconds_per_example": ("seconds an example", ".3g"),
}  # fmt: skip

_MANY_ROWS = 60
_CHAIN_ROWS = 20


def overview(analysis: Analysis, pictures: Mapping[str, Picture]) -> Section:
    """The curves and the main figures."""
    quality = analysis.results[0].pair.large.metadata["quality"]
    rows = list(summary_rows(analysis))
    by_task = []
    if len(rows) > _MANY_ROWS:
        by_task = [row for row in rows if row["task"] != ALL_TASKS]
        rows = [row for row in rows if row["task"] == ALL_TASKS]
    split = analysis.split
    texts = [
        "The small model answers first. An answer whose deferral score reaches the threshold is "
        f"deferred to the large model. Rule of the main figures: {analysis.main_rule}. Quality is "
        f"the mean of {quality}.",
        f"{questions_line(len(analysis.results[0].pair), analysis.num_questions)}.",
    ]
    if split["num_calibration"]:
        texts.append(
            f"{split['num_fit']:,} examples fit rules and {split['num_calibration']:,} others "
            f"choose thresholds (split by {split['by']}); all figures use the remaining "
            f"{split['num_test']:,}."
        )
    return Section(
        warnings=analysis.warnings,
        texts=texts,
        pictures=[pictures["deferral_curve"]],
        tables=[
            table(_SUMMARY, rows),
            table(
                _AT_RATES,
                rows,
                "Quality at fixed cost (deferral rate), and cost at fixed quality (CPT)",
            ),
            *(
                table(heads, by_task, f"{words}, by task", folded=True)
                for heads, words in ((_SUMMARY, "AUDC"), (_AT_RATES, "Quality at fixed cost"))
                if by_task
            ),
        ],
        notes=[
            "AUDC is the area under quality over deferral rate. The oracle knows which answers are "
            "right. APGR is the share of the large model's lead that the cascade recovers, "
            "averaged over rates. CPT x is the smallest deferral rate that recovers x of it; "
            "\u201crate for large\u201d is the smallest at which the cascade is as good as the "
            "large model. The row of a task has its own thresholds. Equal scores are deferred "
            "together."
        ],
    )


def operating_point(analysis: Analysis, _: Mapping[str, Picture]) -> Section | None:
    """The chosen cascade; None without `--operating-point`."""
    if analysis.point is None:
        return None
    first, *estimates = point_lines(analysis.point)
    note = "Load cascade.json with caskd.eval.Cascade.load."
    if analysis.outcomes is not None:
        note = "cascade.json records the threshold; apply it to your own score."
    return Section("Operating point", texts=[first], bullets=estimates, notes=[note])


def quality_parts(_: Analysis, pictures: Mapping[str, Picture]) -> Section:
    """A1 and A2."""
    text = (
        "A1 is the part of the quality that comes from kept answers of the small model, A2 the "
        "part that comes from the large model's answers to deferred examples."
    )
    return Section("Where the quality comes from", texts=[text], pictures=[pictures["a1_a2"]])


def rules(analysis: Analysis, pictures: Mapping[str, Picture]) -> Section:
    """Every deferral rule."""
    gains = {
        (label, first): {
            "gain": difference.value,
            "gain_low": difference.low,
            "gain_high": difference.high,
            "verdict": _GAIN_WORDS[difference.verdict],
        }
        for label, first, _, difference in analysis.comparisons.between_rules
    }
    rows = [
        {**row, **gains.get((row["small"], row["rule"]), {"verdict": "first rule"})}
        for row in rule_rows(analysis)
    ]
    return Section(
        "Deferral rules",
        pictures=[pictures["rules"]],
        tables=[
            table(_RULES, rows),
            table(_CONFIDENCE, rows, "How well the score separates wrong from right answers"),
        ],
        notes=[
            f"The figure is of {analysis.results[0].label}; the first rule is "
            f"{analysis.main_rule}. AUROC, AURC and ECE (lower is better for the last two) "
            "measure the score against the small model's own answers, without the large model. "
            "Isotonic: after isotonic regression of quality on the score of the calibration "
            "examples, which turns any score into a probability.",
            *(f"Left out: {line}" for line in analysis.left_out),
        ],
    )


def cost(analysis: Analysis, pictures: Mapping[str, Picture]) -> Section | None:
    """Computation, time and money; None for an outcome table without costs and times."""
    if "cost" not in pictures:
        return None
    if analysis.outcomes is not None:
        return _table_cost(analysis, pictures["cost"])
    models = [model for one in analysis.results for model in (one.pair.small, one.pair.large)]
    notes = list(dict.fromkeys(note for model in models for note in _experts(model)))
    text = (
        "Computation counts prompts and answers at their own lengths, 2 FLOPs per parameter and "
        "token. Seconds are those of caskd predict, the two models one after the other; the dotted "
        "line is the 95th percentile."
    )
    return Section("Cost per example", texts=[text], pictures=[pictures["cost"]], notes=notes)


def _table_cost(analysis: Analysis, picture: Picture) -> Section:
    """Cost and time as an outcome table states them."""
    text = (
        "Costs and times are those of the table, of the small model and, for deferred examples, of "
        "both models, one after the other. A dotted line is the 95th percentile of the seconds."
    )
    return Section("Cost per example", texts=[text], pictures=[picture])


def _experts(model: Predictions) -> Iterator[str]:
    """How the cost counts a mixture of experts; nothing for other models."""
    described = model.metadata["model"]
    if "num_active_parameters" not in described:
        return
    name = strip_control(model.model_name)
    if described["num_active_parameters"] is None:
        yield (
            f"{name} is a mixture of experts whose config does not name the number that a token "
            f"uses: its cost counts all {model.num_parameters:,} parameters, which is too high."
        )
    else:
        yield (
            f"{name} is a mixture of experts: its cost counts the {model.num_active_parameters:,} "
            f"of its {model.num_parameters:,} parameters that one token uses."
        )


def token_cascades(analysis: Analysis, _: Mapping[str, Picture]) -> Section | None:
    """Answers that two models wrote together; None without `--token-cascade`."""
    rows = list(token_cascade_rows(analysis))
    if not rows:
        return None
    text = (
        "Two models wrote these answers together, token by token. Each is one point, a diamond, in "
        "the figures of cost: its rule is fixed, so that there is no deferral rate. Computation "
        "counts every position that a model computed, rejected drafts and scored drafts included. "
        "The forwards of both models run one after another."
    )
    return Section("Token cascades", texts=[text], tables=[table(_TOKEN_CASCADES, rows)])


def corpus_bleu(_: Analysis, pictures: Mapping[str, Picture]) -> Section | None:
    """Corpus BLEU; None without `--bleu`."""
    if "bleu" not in pictures:
        return None
    text = (
        "Corpus BLEU of the mixed output, computed from n-gram counts summed at each point. It is "
        "not a mean over examples and has no A1 and A2."
    )
    return Section("Corpus BLEU", texts=[text], pictures=[pictures["bleu"]])


def chain(analysis: Analysis, pictures: Mapping[str, Picture]) -> Section | None:
    """The chain's frontier; None without `--chain`."""
    chain = analysis.chain
    if chain is None:
        return None
    rows = chain.rows()
    heads = {
        name: (
            name.replace("share answered", "answered"),
            ".4g" if name == "cost" or name.startswith("threshold") else ".4f",
        )
        for name in rows[0]
    }
    few = [rows[index] for index in thin(len(rows), _CHAIN_ROWS, rounding="down")]
    split = "calibration" if chain.calibrated else "test"
    order = " \u2192 ".join(chain.models)
    return Section(
        f"Chain of {len(chain.models)} models",
        warnings=[]
        if chain.calibrated
        else [
            "The chain's thresholds were chosen on the examples that measure them, so the curve is "
            "optimistic. Pass --calibration 0.5 to choose them on other examples."
        ],
        texts=[
            f"{order}, rule {chain.rule}. Each model defers the examples whose score reaches its "
            "own threshold; without a threshold it defers none. The rows are those of "
            f"{chain.chosen.num_settings:,} settings tried on the {split} examples that no other "
            "setting beats in both quality and cost.",
            f"Cascade routing was left out: {chain.routing}."
            if isinstance(chain.routing, str)
            else "Cascade routing (arXiv 2410.10347) chooses after each answer which model to run "
            "next, or to stop, by expected quality minus lambda times cost. Estimates and lambdas "
            "are from the calibration examples.",
        ],
        pictures=[pictures["chain"]],
        tables=[table(heads, few), *_routing_tables(chain.routing)],
    )


def _routing_tables(routing: RoutingResult | str) -> list[Table]:
    if isinstance(routing, str):
        return []
    rows = routing.rows()
    heads = {name: (name.replace("share answered", "answered"), ".4g") for name in rows[0]}
    few = [rows[index] for index in thin(len(rows), _CHAIN_ROWS, rounding="down")]
    return [table(heads, few, "Cascade routing")]


def threshold_drift(analysis: Analysis, _: Mapping[str, Picture]) -> Section | None:
    """Thresholds of the calibration split on the test split; None without a split."""
    drifts = [row for row in analysis.threshold_drift if row["rule"] == analysis.main_rule]
    if not drifts:
        return None
    text = (
        "Each threshold defers the wanted share of the calibration examples. Drift is the test "
        "split's deferral rate minus the calibration split's. transfer.csv has the other rules."
    )
    return Section("Thresholds on other examples", texts=[text], tables=[table(_DRIFT, drifts)])


def samples(analysis: Analysis, _: Mapping[str, Picture]) -> Section:
    """Examples on both sides of the threshold."""
    count = len(analysis.results[0].pair)
    return Section(
        "Examples on both sides of the threshold",
        texts=[f"{analysis.samples_of}, out of {count:,} examples."],
        tables=[table(_SAMPLES, rows, side.capitalize()) for side, rows in _by_side(analysis)],
    )


def _by_side(analysis: Analysis) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for side in dict.fromkeys(row["side"] for row in analysis.samples):
        yield side, [row for row in analysis.samples if row["side"] == side]
