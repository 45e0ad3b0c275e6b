"""Odd answers: the table of docs/prediction.md holds, and no notation of a number is misread."""

import re
from pathlib import Path

import pytest

from caskd.eval.metrics import score_answer
from caskd.eval.metrics.numbers import last_number
from caskd.eval.tasks import Task, quality
from caskd.store.errors import UsageError

PAGE = Path(__file__).parents[3] / "docs" / "prediction.md"


def rows():
    """Metric, answer, reference, options and quality of each row of the table."""
    table = PAGE.read_text().partition("### Odd answers")[2].partition("\n## ")[0]
    for line in table.strip().splitlines()[2:]:
        *cells, expected, _ = line.split("|")[1:-1]
        metric, answer, reference, options = (re.findall(r"`([^`]*)`", cell) for cell in cells)
        yield metric[0], "".join(answer), reference[0], options, float(expected)


@pytest.mark.parametrize(("metric", "answer", "reference", "options", "expected"), list(rows()))
def test_the_table_holds(metric, answer, reference, options, expected):
    name, _, normalize = metric.partition("/")
    found = score_answer(name, normalize or None, answer, [reference], options)
    assert found == pytest.approx(expected, abs=5e-5)


def test_the_table_is_long():
    assert len(list(rows())) > 140


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("1.5e-3", "0.0015"), ("-0", "0"), ("٣", "3"), ("½", "0.5"), ("2½", "2.5"), ("0,500", ".5"),
        (r"\frac{3}{4}", "0.75"), ("3\u00d710⁸", "3e8"), ("1'234", "1234"),
        ("12,34,567", "1234567"),
        ("1.234.567", "1234567"), ("$-5", "-5"), ("10 000", "10000"), ("12/05/2020", "2020"),
        ("1,234,5", "5"), ("9" * 5000, "9" * 5000), ("1e999999999", "10e999999998"),
    ],
)  # fmt: skip
def test_equal_numbers(text, same):
    assert last_number(text) == last_number(same) is not None


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("1.5^2", "2"),
        ("x^{12}", "2"),
        ("2^3^2", "9"),
        ("9" * 400, "9" * 399 + "8"),
        ("1e400", "1e401"),
        ("2:4", "1:2"),
    ],
)
def test_different_numbers(text, other):
    assert last_number(text) != last_number(other)


@pytest.mark.parametrize(
    "text",
    [" " * 100_000 + "1", "1" + " " * 100_000, "9" * 20_000 + "^2", "1," * 50_000, "1^" * 50_000,
     r"\frac" + " " * 100_000, "9^" + "9" * 9, "9^999999999^9", "A, " * 50_000],
)  # fmt: skip
def test_a_long_answer_is_read_once(text):
    last_number(text)
    assert score_answer("accuracy", None, text, ["A"], ["A", "B"]) in (0.0, 1.0)


def test_a_reference_outside_the_options_is_refused():
    with pytest.raises(UsageError, match="reference '2' is none of the options 'A', 'B'"):
        quality(Task("accuracy"), "B", ["2"], ["A", "B"])
    assert quality(Task("accuracy"), "B", ["B. Paris"], ["A", "B"]) == 1.0
    assert quality(Task("accuracy"), "no idea", ["no idea", "no"], ["yes", "no"]) == 1.0
