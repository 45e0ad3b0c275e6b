"""The demo's corpus: correct responses, disjoint splits, equal streams for equal seeds."""

import itertools
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from caskd.cli.demo.demo_tasks import (
    TASKS,
    generate,
    roman_numeral,
    split_of,
    swap_responses,
    write_corpus,
)

RECORDS = list(itertools.islice(generate(0, "train"), 4000))


def question(record: dict[str, str]) -> list[str]:
    return record["prompt"].removesuffix(":").split()


FACTORS = {"km m": 1000, "m cm": 100, "cm mm": 10, "kg g": 1000, "h min": 60}
ALPHABET = "abcdefghijklmnopqrstuvwxyz"

# Each answer worked out another way than the generator does; Roman numerals have their own test.
ANSWERS: dict[str, Callable[..., str]] = {
    "parity": lambda number: "even" if number[-1] in "02468" else "odd",
    "compare": lambda a, b: "<=>"[1 + (int(a) > int(b)) - (int(a) < int(b))],
    "date": lambda day: f"{date.fromisoformat(day):%-d %B %Y}",
    "convert": lambda n, source, _, target: str(int(n) * FACTORS[f"{source} {target}"]),
    "max": lambda *numbers: str(sorted(map(int, numbers))[-1]),
    "sort": lambda word: "".join(letter for letter in ALPHABET if letter in word),
    "reverse": lambda word: "".join(reversed(word)),
    "count": lambda letter, _, word: str(len([each for each in word if each == letter])),
    "add": lambda a, b: str(int(a) + int(b)),
    "subtract": lambda a, _, b: str(int(b) - int(a)),
    "multiply": lambda a, b: str(sum(int(b) for _ in range(int(a)))),
}


def test_responses_are_correct() -> None:
    for record in RECORDS:
        task, *words = question(record)
        if task != "roman":
            assert record["response"] == ANSWERS[task](*words), record


def test_roman_numerals() -> None:
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    for number in range(1, 4000):
        letters = [values[letter] for letter in roman_numeral(number)]
        signs = [-1 if a < b else 1 for a, b in itertools.pairwise([*letters, 0])]
        assert sum(s * v for s, v in zip(signs, letters, strict=True)) == number
    assert [roman_numeral(n) for n in (4, 9, 49, 1994, 3888)] == [
        "IV", "IX", "XLIX", "MCMXCIV", "MMMDCCCLXXXVIII",
    ]  # fmt: skip


def test_every_task_takes_part() -> None:
    counts = {task: sum(record["task"] == task for record in RECORDS) for task in TASKS}
    assert len(TASKS) >= 8
    assert min(counts.values()) > 250
    assert {question(record)[0] for record in RECORDS} == set(TASKS)


def test_prompts_and_ids_are_unique() -> None:
    assert len({record["prompt"] for record in RECORDS}) == len(RECORDS)
    assert len({record["id"] for record in RECORDS}) == len(RECORDS)


def test_splits_never_meet_whatever_the_seed() -> None:
    train = {record["prompt"] for record in RECORDS}
    for seed in range(3):
        tests = [record["prompt"] for record in itertools.islice(generate(seed, "test"), 1000)]
        assert not train & set(tests)
        assert {split_of(prompt) for prompt in tests} == {"test"}


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_corpus(tmp_path / name, seed, "test", 50)
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != third
    lines = [json.loads(line) for line in first.decode().splitlines()]
    assert len(lines) == 50
    assert all(set(line) == {"id", "task", "prompt", "response"} for line in lines)


def test_swapped_responses_stay_within_their_task() -> None:
    swapped = swap_responses(RECORDS, 0.25, seed=3)
    answers = {task: {r["response"] for r in RECORDS if r["task"] == task} for task in TASKS}
    assert [r["prompt"] for r in swapped] == [r["prompt"] for r in RECORDS]
    assert all(record["response"] in answers[record["task"]] for record in swapped)
    pairs = [pair for pair in zip(RECORDS, swapped, strict=True) if pair[0]["task"] == "sort"]
    changed = sum(before["response"] != after["response"] for before, after in pairs) / len(pairs)
    assert 0.17 < changed < 0.33
    assert swapped == swap_responses(RECORDS, 0.25, seed=3)
    assert swapped != swap_responses(RECORDS, 0.25, seed=4)


def test_nothing_is_swapped_unless_asked() -> None:
    assert swap_responses(RECORDS, 0.0, seed=0) == RECORDS


@pytest.mark.parametrize("split", ["train", "test"])
def test_ids_name_the_split(split: str) -> None:
    records = itertools.islice(generate(1, split), 3)  # type: ignore[arg-type]
    assert [record["id"] for record in records] == [f"{split}-{n:06}" for n in range(3)]
