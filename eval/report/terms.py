"""Terms of the page: what they mean, on hover or focus in a text, and as a legend."""

import re
from collections.abc import Mapping

from markupsafe import Markup, escape

TERMS: Mapping[str, str] = {
    "threshold": "An answer whose deferral score is at least this number goes to the large model.",
    "deferral rate": "Share of the examples that the large model answers.",
    "quality": "Mean of the metric over all examples, each answered by the model that the "
    "threshold chooses.",
    "AUDC": "Area under the deferral curve: mean quality over all deferral rates. Higher is "
    "better.",
    "random": "The area if examples were deferred at random: the mean of both models' qualities.",
    "oracle": "The area if examples were deferred where the large model gains most; no score "
    "exceeds it.",
    "over random, %": "How far the area is above that of random deferral, in percent of it.",
    "APGR": "Average performance gap recovered: share of the large model's lead that the cascade "
    "recovers, averaged over deferral rates.",
    "CPT": "Call-performance threshold: the smallest deferral rate that recovers this share of the "
    "large model's lead.",
    "rate for large": "Smallest deferral rate at which the cascade is as good as the large model.",
    "AUROC": "Probability that a wrong answer of the small model scores above a right one; 0.5 is "
    "chance.",
    "AURC": "Area under the risk-coverage curve: mean error of the surest answers, averaged over "
    "their share. Lower is better.",
    "ECE": "Expected calibration error: mean distance of stated and true probability. Lower is "
    "better.",
    "95 % from": "Lower end of the 95 % interval; the upper end stands in the next column.",
    "drift": "Deferral rate on the test examples minus that on the calibration examples.",
}
_IN_TEXT = re.compile(r"\b(AUDC|APGR|CPT|AUROC|AURC|ECE|[Dd]eferral rate|[Tt]hreshold|oracle)\b")


def explained(text: str) -> Markup:
    """The text, escaped, with each term explained where it first occurs."""
    seen: set[str] = set()

    def mark(match: re.Match[str]) -> str:
        term = match[0] if match[0] in TERMS else match[0].lower()
        if term in seen:
            return match[0]
        seen.add(term)
        return str(_abbreviation(match[0], TERMS[term], tabindex=True))

    return Markup(_IN_TEXT.sub(mark, str(escape(text))))


def explained_head(text: str) -> Markup:
    """A heading of a table; its button receives the focus."""
    term = text if text in TERMS else text.split(" ")[0].rstrip(",")
    if term in TERMS:
        return _abbreviation(text, TERMS[term], tabindex=False)
    return escape(text)


def _abbreviation(text: str, meaning: str, *, tabindex: bool) -> Markup:
    focus = Markup(' tabindex="0"') if tabindex else ""
    return Markup('<abbr title="{}"{}>{}</abbr>').format(meaning, focus, text)
