"""What is trained, with which seeds and steps, and what is compared.

Fixed before the first arm was trained. Data, shapes, steps and learning rates are those of the
scale `cpu` in `../reproduce_cat/scales.py`.
"""

from types import MappingProxyType

SEEDS = (0, 1, 2, 3, 4)

DELEGATED = ("loss", "fact-loss", "rho", "gap", "unacceptable", "random", "l2d", "ova")
"""Rules of --delegate, each with --objective xent and the default share; `random` is the placebo.
l2d and ova are consistent surrogates without a share, scored by their own rule of deferral;
fact-loss reads the spans of `FACTS`."""
PLAIN = "xent"
"""The arm without a CALL token, on which all other rules are measured."""
ARMS = MappingProxyType(
    {
        "text": (PLAIN, *DELEGATED),
        "generation": (PLAIN, "loss", "rho", "unacceptable", "random"),
    }
)
"""Pool -> arms."""

FACTS = r"\b[A-Z]\w*|\d+"
"""Capitalised words and numbers stand in for LaCy's facts, which a parser marks."""

ROUTER_LABEL = "divergent"
"""R2R's label. The router is fitted on the store that the arms were trained on."""
PLAIN_RULES = ("log-probability", "margin", "entropy", "router")
NEEDS_LARGE = "token-v3"
"""Speculative cascade: reads the large model's probability of the small model's choice."""

SHARES = (0.1, 0.2, 0.4)
"""Shares of the large model's tokens at which offline quality is shown."""
ONLINE_SHARES = (0.1, 0.3)
"""Shares for which thresholds of the decoder are chosen, on the calibration part."""
ONLINE_ARMS = ("loss", "rho", "unacceptable", "random")
ONLINE_EXAMPLES = 200

CONTRASTS = (
    ("fact-loss/call", "loss/call"),
    ("fact-loss/call", "rho/call"),
    ("fact-loss/call", "unacceptable/call"),
    ("fact-loss/call", "random/call"),
    ("fact-loss/call", "xent/entropy"),
    ("unacceptable/call", "loss/call"),
    ("rho/call", "loss/call"),
    ("gap/call", "loss/call"),
    ("loss/call", "random/call"),
    ("rho/call", "random/call"),
    ("unacceptable/call", "random/call"),
    ("l2d/call", "random/call"),
    ("ova/call", "random/call"),
    ("unacceptable/call", "xent/entropy"),
    ("rho/call", "xent/entropy"),
    ("l2d/call", "rho/call"),
    ("ova/call", "l2d/call"),
    ("xent/router", "xent/entropy"),
    ("xent/router", "rho/call"),
    ("xent/margin", "xent/log-probability"),
    ("xent/entropy", "xent/log-probability"),
    ("xent/token-v3", "xent/router"),
)
"""Pairs of arm/rule, compared in the area under quality over the share of the large model's tokens,
in that area above random deferral, and in the small model alone. A contrast is left out of a pool
without one of its arms."""

AREA, SMALL = "audc", "quality_small"
CLAIMS = (
    (
        "facts with a high loss are delegated better than any token with a high loss",
        ("fact-loss/call", "loss/call"),
        AREA,
        "above",
    ),
    (
        "better than by the excess over a reference model (Rho-1)",
        ("fact-loss/call", "rho/call"),
        AREA,
        "above",
    ),
    (
        "better than where the large model finds the alternative unacceptable, in place of a judge",
        ("fact-loss/call", "unacceptable/call"),
        AREA,
        "above",
    ),
    (
        "delegation leaves the small model alone as good as plain training",
        ("fact-loss/call", "xent/entropy"),
        SMALL,
        "within",
    ),
)
"""LaCy's orderings (arXiv 2602.12005) on plain text: the contrast that decides each, its measure,
and what is expected. FActScore, the paper's own measure, cannot be computed on these models. The
claims are decided on the pool `text`; two arms are `within` if both intervals are within 0.01."""
