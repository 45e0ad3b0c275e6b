"""The claims of the paper and our controls, each compared with the tables."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pools import POOLS
from report_contrasts import AVERAGE, BASELINE, CAT, MINUS, RANDOM
from report_read import Row
from report_runs import ALL
from report_runs import WITHIN as WITHIN_TASK
from report_stats import ABOVE, BELOW, REPRODUCED, UNDECIDED, UNFIT, WITHIN, mark, mark_all
from scales import PRIMARY

CLEAN, CONTROL, NOISY = "clean", "noisy20-clean-teacher", "noisy20-noisy-teacher"
NOISIER_CONTROL, NOISIER = "noisy40-clean-teacher", "noisy40-noisy-teacher"
PAPER, OURS = "paper", "control"
NEAR_RULE = "quantile-0.4"
Tables = Mapping[str, Sequence[Row]]
"""Name of a CSV file -> its lines."""


@dataclass(frozen=True)
class Part:
    """One difference that a claim states."""

    table: str
    """Its CSV file: contrasts, rules or a1_a2."""
    wanted: str
    """`ABOVE`, `BELOW` or `WITHIN`."""
    text: str
    """The difference, in words."""
    where: Mapping[str, object]
    """Cells that identify its line."""


@dataclass(frozen=True)
class Claim:
    """An ordering that is tested in each pool separately."""

    name: str
    source: str
    text: str
    parts: tuple[Part, ...] = ()
    condition: str = CLEAN
    pools: Callable[[str], bool] = field(default=lambda pool: not _text(pool))


def _arms(
    first: str, second: str, wanted: str = ABOVE, measure: str = "audc", task: str = ALL
) -> Part:
    where = {"contrast": first + MINUS + second, "task": task, "measure": measure}
    text = f"{first + MINUS + second}, {measure}{'' if task == ALL else ' within tasks'}"
    return Part("contrasts", wanted, text, where)


def _rule(rule: str, wanted: str) -> Part:
    text = f"{rule + MINUS + AVERAGE} on {CAT}, audc"
    return Part("rules", wanted, text, {"arm": CAT, "rule": rule})


def _part(part: str, wanted: str) -> Part:
    text = f"{CAT + MINUS + BASELINE}, {part} (mean over deferral rates)"
    return Part("a1_a2", wanted, text, {"part": part, "deferral_rate": "mean"})


def _text(pool: str) -> bool:
    return POOLS[pool].is_text


def _one_token(pool: str) -> bool:
    return not _text(pool) and POOLS[pool].max_new_tokens == 1


def _long(pool: str) -> bool:
    return not _text(pool) and not _one_token(pool)


BOTH = (_arms(CAT, BASELINE), _arms(CAT, RANDOM))
WORSE_RULES = ("sum", "min", "max", "quantile-0.2", "quantile-0.6", "quantile-0.8")
CLAIMS = (
    Claim("positive-control", OURS, "With a fifth of the training labels wrong and a teacher that "
          "saw none of them, cat-xent beats both xent and its random mask", BOTH, CONTROL),
    Claim("above-random-mask", OURS, "cat-xent beats a random mask that keeps as much at each step",
          (_arms(CAT, RANDOM),)),
    Claim("better-deferral", OURS, "cat-xent defers better than xent, beyond what a better small "
          "model brings: its area gains over random deferral",
          (_arms(CAT, BASELINE, measure="audc_over_random"),)),
    Claim("better-deferral-within-tasks", OURS, "The same within tasks, each with thresholds of "
          "its own (the measure was planned, the question put after two seeds of the positive "
          "control)",
          (_arms(CAT, BASELINE, measure="audc_over_random", task=WITHIN_TASK),)),
    Claim("placebo", OURS, "The random mask by itself changes nothing",
          (_arms(RANDOM, BASELINE, WITHIN),)),
    Claim("noisy-teacher", OURS, "With a fifth of the labels wrong for the teacher too, cat-xent "
          "beats both xent and its random mask", BOTH, NOISY),
    Claim("noisier-control", OURS, "With two fifths of the training labels wrong and a teacher "
          "that saw none of them, cat-xent beats both xent and its random mask", BOTH,
          NOISIER_CONTROL),
    Claim("noisier-teacher", OURS, "With two fifths of the labels wrong for the teacher too, "
          "cat-xent beats both xent and its random mask", BOTH, NOISIER),
    Claim("cat-xent", PAPER, "cat-xent is above xent in the area under the deferral curve",
          (_arms(CAT, BASELINE),)),
    Claim("cat-dist", PAPER, "cat-dist is above dist in the area under the deferral curve",
          (_arms("cat-dist", "dist"),)),
    Claim("a1-a2", PAPER, "The gain lies in A1, the kept answers of the small model; A2 is "
          "unchanged (sec. 4.2)", (_part("a1", ABOVE), _part("a2", WITHIN))),
    Claim("teacher-only", PAPER, "A mask of the teacher alone does as well as cat-xent",
          (_arms("cat-xent-l", CAT, WITHIN),)),
    Claim("student-only", PAPER, "A mask of the student alone trains slowly: a worse small model "
          "after as many steps", (_arms("cat-xent-s", CAT, BELOW, "quality_small"),)),
    Claim("average-best", PAPER, "`average` is the best deferral rule (app. C.1)",
          tuple(_rule(rule, BELOW) for rule in WORSE_RULES), pools=_long),
    Claim("quantile-near", PAPER, "The 0.4-quantile is close to `average` (app. C.1)",
          (_rule(NEAR_RULE, WITHIN),), pools=_long),
    Claim("edge-one-token", PAPER, "EdgeInference is like `average` on one-token answers (app. B)",
          (_rule("edge-inference", WITHIN),), pools=_one_token),
    Claim("edge-long", PAPER, "EdgeInference falls behind `average` on long answers, where "
          "the paper sees it collapse (app. B)",
          (_rule("edge-inference", BELOW),), pools=_long),
    Claim("next-token", PAPER, "cat-xent is above xent in the area under the deferral curve of "
          "next tokens (app. E)", (_arms(CAT, BASELINE),), pools=_text),
)  # fmt: skip


def claim_rows(tables: Tables, planned: Mapping[str, Collection[str]]) -> Iterator[Row]:
    """One line for each part of each claim in each pool that it covers.

    A result of an unfit pool decides nothing, and neither does a pool that was not planned.

    Args:
        tables: contrasts, rules, a1_a2 and pools.
        planned: pool -> its conditions.
    """
    for claim in CLAIMS:
        own: list[str | None] = [
            pool for pool, conditions in planned.items()
            if claim.pools(pool) and claim.condition in conditions
        ]  # fmt: skip
        for pool in own or [None]:
            found = [(part, _find(tables, claim, pool, part)) for part in claim.parts]
            marks = [_mark(part, row) for part, row in found]
            fit = fit_of(tables, pool, claim.condition)
            whole = mark_all(marks) if fit != UNFIT else UNDECIDED
            for (part, row), mark_of_part in zip(found, marks, strict=True):
                yield {
                    "claim": claim.name, "source": claim.source, "says": claim.text, "pool": pool,
                    "condition": claim.condition, "fit": fit, "marked": whole, "part": part.text,
                    "part_marked": mark_of_part, **_figures(row),
                    "verdict": row[_column(part)] if row else None,
                }  # fmt: skip


def fit_of(tables: Tables, pool: str | None, condition: str) -> str | None:
    """Whether the large model leads each primary arm by enough; None: not measured."""
    marks = [
        row["fit"] for row in tables.get("pools", ())
        if (row["pool"], row["condition"]) == (pool, condition) and row["arm"] in PRIMARY
    ]  # fmt: skip
    return UNFIT if UNFIT in marks else marks[0] if marks else None


def _find(tables: Tables, claim: Claim, pool: str | None, part: Part) -> Row | None:
    where = {"pool": pool, "condition": claim.condition, **part.where}
    return next((row for row in tables.get(part.table, ()) if where.items() <= row.items()), None)


def _mark(part: Part, row: Row | None) -> str:
    return UNDECIDED if row is None else mark(row[_column(part)], part.wanted)


def _column(part: Part) -> str:
    return "equivalence" if part.wanted == WITHIN else "verdict"


def _figures(row: Row | None) -> Row:
    names = ("mean", "low", "high", "t_low", "t_high", "num_seeds")
    return {name: row.get(name) if row else None for name in names}


def everywhere(rows: Sequence[Row], name: str) -> bool:
    """Whether a claim is reproduced in all pools that it covers."""
    return {row["marked"] for row in rows if row["claim"] == name} == {REPRODUCED}
