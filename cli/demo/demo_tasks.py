"""Corpus of the demo: small procedural tasks of different difficulty, as instructions.

The split of a prompt follows from the prompt's checksum, not from the seed. So no seed leaks a test
prompt into training, and the bundled teacher has seen none either.
"""

import itertools
import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

Split = Literal["train", "test"]
Pair = tuple[str, str]

TEST_SHARE = 8  # one prompt in eight is a test prompt
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December"]  # fmt: skip
ROMAN = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"),
         (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]  # fmt: skip
UNITS = [("km", "m", 1000), ("m", "cm", 100), ("cm", "mm", 10), ("kg", "g", 1000), ("h", "min", 60)]


def roman_numeral(number: int) -> str:
    """Roman numeral of a number from 1 to 3999."""
    text = ""
    for value, letters in ROMAN:
        count, number = divmod(number, value)
        text += letters * count
    return text


def _word(rng: random.Random, letters: str, shortest: int, longest: int) -> str:
    return "".join(rng.choices(letters, k=rng.randint(shortest, longest)))


def _parity(rng: random.Random) -> Pair:
    number = rng.randint(10, 99999)
    return f"parity {number}", "odd" if number % 2 else "even"


def _compare(rng: random.Random) -> Pair:
    left, right = rng.randint(10, 9999), rng.randint(10, 9999)
    if rng.random() < 0.1:
        right = left
    return f"compare {left} {right}", "<" if left < right else ">" if left > right else "="


def _date(rng: random.Random) -> Pair:
    year, month, day = rng.randint(1900, 2099), rng.randint(1, 12), rng.randint(1, 28)
    return f"date {year}-{month:02}-{day:02}", f"{day} {MONTHS[month - 1]} {year}"


def _convert(rng: random.Random) -> Pair:
    source, target, factor = rng.choice(UNITS)
    number = rng.randint(2, 99 if factor == 60 else 999)
    return f"convert {number} {source} to {target}", f"{number * factor}"


def _maximum(rng: random.Random) -> Pair:
    numbers = [rng.randint(0, 99) for _ in range(rng.randint(3, 4))]
    return f"max {' '.join(map(str, numbers))}", str(max(numbers))


def _sort(rng: random.Random) -> Pair:
    letters = rng.sample(LETTERS, rng.randint(4, 6))
    return f"sort {''.join(letters)}", "".join(sorted(letters))


def _reverse(rng: random.Random) -> Pair:
    word = _word(rng, LETTERS, 4, 6)
    return f"reverse {word}", word[::-1]


def _roman(rng: random.Random) -> Pair:
    number = rng.randint(1, 3999)
    return f"roman {number}", roman_numeral(number)


def _count(rng: random.Random) -> Pair:
    letter, word = rng.choice("abc"), _word(rng, "abc", 5, 9)
    return f"count {letter} in {word}", str(word.count(letter))


def _add(rng: random.Random) -> Pair:
    left, right = rng.randint(10, 999), rng.randint(10, 999)
    return f"add {left} {right}", str(left + right)


def _subtract(rng: random.Random) -> Pair:
    right, left = sorted((rng.randint(10, 999), rng.randint(10, 999)))
    return f"subtract {right} from {left}", str(left - right)


def _multiply(rng: random.Random) -> Pair:
    left, right = rng.randint(2, 9), rng.randint(10, 999)
    return f"multiply {left} {right}", str(left * right)


TASKS: dict[str, Callable[[random.Random], Pair]] = {
    "parity": _parity,
    "compare": _compare,
    "date": _date,
    "convert": _convert,
    "max": _maximum,
    "sort": _sort,
    "reverse": _reverse,
    "roman": _roman,
    "count": _count,
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
}


def split_of(prompt: str) -> Split:
    """Split of a prompt, the same for every seed."""
    return "test" if zlib.crc32(prompt.encode()) % TEST_SHARE == 0 else "train"


def generate(seed: int, split: Split) -> Iterator[dict[str, str]]:
    """Yield an endless stream of records of one split: tasks in turn, no prompt twice.

    A task with few prompts (Roman numerals, dates) becomes rarer in a long stream, not repeated.

    Args:
        seed: equal seeds give equal streams.
        split: `"train"` or `"test"`; the two have no prompt in common.

    Yields:
        Records with `id`, `task`, `prompt` (ending in a colon) and `response`.
    """
    rng = random.Random(f"{seed}/{split}")
    seen: set[str] = set()
    while True:
        for task, make in TASKS.items():
            question, response = make(rng)
            prompt = f"{question}:"
            if prompt in seen or split_of(prompt) != split:
                continue
            seen.add(prompt)
            yield {
                "id": f"{split}-{len(seen) - 1:06}",
                "task": task,
                "prompt": prompt,
                "response": response,
            }


def swap_responses(
    records: Sequence[dict[str, str]], share: float, seed: int
) -> list[dict[str, str]]:
    """Replace the responses of a fraction of the records by that of a random record of the task.

    This imitates wrong labels in instruction data. Some swaps change nothing: even stays even.
    """
    rng = random.Random(f"{seed}/swap")
    by_task: dict[str, list[str]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record["response"])
    return [
        {**record, "response": rng.choice(by_task[record["task"]])}
        if rng.random() < share
        else record
        for record in records
    ]


def write_corpus(
    path: Path, seed: int, split: Split, num_examples: int, swapped_share: float = 0.0
) -> None:
    """Write the first `num_examples` records of a split as JSON lines, with swapped responses."""
    records = list(itertools.islice(generate(seed, split), num_examples))
    with path.open("w", encoding="utf-8") as file:
        for record in swap_responses(records, swapped_share, seed):
            file.write(json.dumps(record) + "\n")
