"""What the page says, section by section."""

from collections.abc import Iterator, Mapping
from typing import Any

from caskd.eval.report.differences import comparisons
from caskd.eval.report.page import Heads, Picture, Section, table
from caskd.eval.report.sentences import point_lines
from caskd.eval.report.tables import rule_rows, summary_rows
from caskd.eval.study import ALL_TASKS, Findings

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
}  # fmt: skip
_TRANSFER: Heads = {
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
_GAIN_WORDS = {"the first is better": "better", "the second is better": "worse",
               "no difference shown": "no difference shown"}  # fmt: skip

_MANY_ROWS = 60


def page_sections(
    findings: Findings, summary: Mapping[str, Any], pictures: Mapping[str, Picture]
) -> list[Section]:
    """Every section that has something to say."""
    measured = findings.measured
    sections = [_first(findings, summary, pictures)]
    if findings.point is not None:
        head, *rest = point_lines(findings.point)
        note = "cascade.json holds it for caskd.eval.Cascade.load."
        sections.append(Section("Operating point", texts=[head], bullets=rest, notes=[note]))
    sections.append(comparisons(findings, summary))
    sections.append(
        Section(
            "Where the quality comes from",
            texts=["A1 is the part of the quality that answers kept from the small model bring, A2 "
                   "the part that the large model's answers to deferred examples bring."],
            pictures=[pictures["a1_a2"]],
        )
    )  # fmt: skip
    sections.append(_rules(findings, pictures))
    sections.append(
        Section(
            "Cost per example",
            texts=["Computation counts prompts and answers at their own lengths, 2 FLOPs per "
                   "parameter and token. Seconds are those of caskd predict, one model after the "
                   "other; dotted, the 95th percentile."],
            pictures=[pictures["cost"]],
        )
    )  # fmt: skip
    if "bleu" in pictures:
        text = (
            "Corpus BLEU of the mixed output, from n-gram counts summed at each point: it is no "
            "mean over examples, and has no A1 and A2."
        )
        sections.append(Section("Corpus BLEU", texts=[text], pictures=[pictures["bleu"]]))
    if findings.chain is not None:
        sections.append(_chain(findings, pictures["chain"]))
    if findings.transfer:
        drifts = [row for row in findings.transfer if row["rule"] == findings.main_rule]
        text = (
            "Each threshold is the one that defers the wanted share of the calibration examples; "
            "drift is by how much it defers more of the test examples. The other rules are in "
            "transfer.csv."
        )
        sections.append(
            Section("Thresholds on other examples", texts=[text],
                    tables=[table(_TRANSFER, drifts)])
        )  # fmt: skip
    sections.append(
        Section(
            "Examples on both sides of the threshold",
            texts=[f"{findings.samples_of}. {len(measured[0].pair):,} examples in all."],
            tables=[table(_SAMPLES, rows, side.capitalize()) for side, rows in _by_side(findings)],
        )
    )
    return sections


def _by_side(findings: Findings) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for side in dict.fromkeys(row["side"] for row in findings.samples):
        yield side, [row for row in findings.samples if row["side"] == side]


def _first(
    findings: Findings, summary: Mapping[str, Any], pictures: Mapping[str, Picture]
) -> Section:
    rows = list(summary_rows(findings.measured))
    by_task = []
    if len(rows) > _MANY_ROWS:
        by_task = [row for row in rows if row["task"] != ALL_TASKS]
        rows = [row for row in rows if row["task"] == ALL_TASKS]
    split = findings.split
    texts = [
        "The small model answers first. An answer whose deferral score reaches the threshold is "
        f"deferred to the large model. Rule of the main figures: {findings.main_rule}. Quality is "
        f"the mean of {summary['quality']}.",
    ]
    if split["num_calibration"]:
        texts.append(
            f"{split['num_fit']:,} examples fit rules and {split['num_calibration']:,} others "
            f"choose thresholds (split by {split['by']}); all figures are of the remaining "
            f"{split['num_test']:,}."
        )
    return Section(
        warnings=findings.warnings,
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
            "averaged over rates; CPT x the smallest deferral rate that recovers x of it; "
            "\u201crate for large\u201d the smallest at which the cascade is as good as the large "
            "model. A task's own row has thresholds of its own. Equal scores are deferred together."
        ],
    )


def _rules(findings: Findings, pictures: Mapping[str, Picture]) -> Section:
    gains = {
        (label, first): {
            "gain": one.value,
            "gain_low": one.low,
            "gain_high": one.high,
            "verdict": _GAIN_WORDS[one.verdict],
        }
        for label, first, _, one in findings.comparisons.between_rules
    }
    rules = [
        {**row, **gains.get((row["small"], row["rule"]), {"verdict": "first rule"})}
        for row in rule_rows(findings.measured)
    ]
    return Section(
        "Deferral rules",
        pictures=[pictures["rules"]],
        tables=[
            table(_RULES, rules),
            table(_CONFIDENCE, rules, "How well the score tells wrong answers from right ones"),
        ],
        notes=[
            f"The figure is of {findings.measured[0].label}; the first rule is "
            f"{findings.main_rule}. AUROC, AURC and ECE (of the last two, lower is better) speak "
            "of the score and the small model's own answers, without the large model.",
            *(f"Left out: {line}" for line in findings.left_out),
        ],
    )


def _chain(findings: Findings, picture: Picture) -> Section:
    chain = findings.chain
    assert chain is not None, "called only where there is one"
    rows = chain.rows()
    heads = {
        name: (
            name.replace("share answered", "answered"),
            ".4g" if name == "cost" or name.startswith("threshold") else ".4f",
        )
        for name in rows[0]
    }
    few = [rows[place] for place in sorted({int(i * (len(rows) - 1) / 19) for i in range(20)})]
    split = "calibration" if chain.calibrated else "test"
    order = " \u2192 ".join(chain.models)
    return Section(
        f"Chain of {len(chain.models)} models",
        warnings=[]
        if chain.calibrated
        else [
            "The chain's thresholds were chosen on the examples that they are measured on, the "
            "best of many: the curve is too good. Give --calibration 0.5."
        ],
        texts=[
            f"{order}, rule {chain.rule}: each passes on what reaches its own threshold, and "
            "nothing where there is none. "
            f"Of {chain.chosen.num_settings:,} settings tried on the {split} "
            f"examples, those that no other beats in both quality and cost."
        ],
        pictures=[picture],
        tables=[table(heads, few)],
    )
