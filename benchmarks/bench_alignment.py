"""How the tokens of two tokenizers align: spans of the same bytes, on files of text.

    python benchmarks/bench_alignment.py --teacher MODEL --student NAME=FILE --text NAME=FILE

Both flags may be repeated. A tokenizer FILE is a model's folder, a `tokenizer.json`, a `.tiktoken`
file of ranks (with Qwen's pattern) or a `tekken` JSON. A text FILE is plain text, of which each
line is a text; or JSON lines, of which --field names the text (the first that a record has).
FILE:COUNT takes the first COUNT texts. No text reaches the table, only counts. Writes
benchmarks/results/alignment.csv.
"""

import argparse
import base64
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from store_rows import setting, write_table
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from caskd.models import open_tokenizer
from caskd.store.corpus import token_bytes
from caskd.train.data import align_tokens

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_tokenizer(path: Path) -> Any:
    """A tokenizer from any of the files above."""
    if path.is_dir():
        return open_tokenizer(str(path), "tokenizer")
    if path.suffix == ".tiktoken":
        lines = [line.split() for line in path.read_bytes().splitlines() if line]
        ranked = [base64.b64decode(token) for token, _ in lines]
        return ranked_tokenizer(ranked, QWEN)
    content = json.loads(path.read_text(encoding="utf-8"))
    if "vocab" not in content:
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    config = content["config"]
    count = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranked = [base64.b64decode(entry["token_bytes"]) for entry in content["vocab"][:count]]
    return ranked_tokenizer(ranked, config["pattern"])


def ranked_tokenizer(ranked: Sequence[bytes], pattern: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE from tokens in the order of their merges, as tiktoken has them."""
    letters = bytes_to_unicode()

    def name(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    rank = {token: n for n, token in enumerate(ranked)}
    merges = [parts for token in ranked if (parts := last_merge(token, rank))]
    backend = Tokenizer(
        models.BPE(
            {name(token): n for token, n in rank.items()},
            [(name(left), name(right)) for left, right in merges],
            ignore_merges=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def last_merge(token: bytes, rank: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that merge into this one when only lower ranks may merge before."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda n: _rank(parts, n, rank))
        if _rank(parts, best, rank) >= rank[token]:
            return None
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _rank(parts: Sequence[bytes], n: int, rank: dict[bytes, int]) -> int:
    return rank.get(parts[n] + parts[n + 1], len(rank))


def read_texts(path: Path, fields: Sequence[str], most: int | None) -> list[str]:
    """The first texts of a file that are not blank; None: all of them."""
    lines = path.read_text(encoding="utf-8").split("\n")
    found = (line for line in lines if line.strip())
    if path.suffix == ".jsonl":
        found = (_field(json.loads(line), fields) for line in found)
    return list(islice(found, most))


def _field(record: dict[str, Any], fields: Sequence[str]) -> str:
    found = next((name for name in fields if name in record), None)
    if found is None:
        raise SystemExit(f"a record has none of --field {', '.join(fields)}")
    return str(record[found])


class Sizes:
    """Bytes of each token of a text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._bytes = tokenizer, token_bytes(tokenizer)

    def of(self, texts: Sequence[str]) -> Iterator[tuple[bytes, np.ndarray]]:
        """The bytes of each text's tokens, and their numbers."""
        for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
            parts = [self._bytes[id_] for id_ in ids]
            yield b"".join(parts), np.array([len(part) for part in parts], np.int64)


def measure(texts: Sequence[str], teacher: Sizes, student: Sizes) -> dict[str, Any]:
    """Counts over all texts whose bytes agree; the columns of the table."""
    rows = spans = tokens = pairs = longest = other = 0
    for (their, theirs), (our, ours) in zip(teacher.of(texts), student.of(texts), strict=True):
        found = align_tokens(theirs, ours) if their == our else None
        if found is None:
            other += 1
            continue
        sides = [
            np.bincount(side, minlength=found.count)
            for side in (found.of_teacher, found.of_student)
        ]
        rows, tokens, spans = rows + len(theirs), tokens + len(ours), spans + found.count
        pairs += int(np.count_nonzero((sides[0] == 1) & (sides[1] == 1)))
        longest = max(longest, int(sides[0].max(initial=0)))
    return {
        "texts": len(texts),
        "other_bytes": other,
        "teacher_tokens": rows,
        "student_per_teacher": round(tokens / rows, 4),
        "teacher_per_span": round(rows / spans, 4),
        "student_per_span": round(tokens / spans, 4),
        "one_to_one_of_teacher": round(pairs / rows, 4),
        "one_to_one_of_student": round(pairs / tokens, 4),
        "longest_teacher": longest,
    }


def named(value: str) -> tuple[str, Path]:
    """NAME=FILE."""
    name, _, path = value.partition("=")
    return name, Path(path)


def text_file(value: str) -> tuple[str, Path, int | None]:
    """NAME=FILE or NAME=FILE:COUNT."""
    name, path = named(value)
    file, _, count = str(path).rpartition(":")
    return (name, Path(file), int(count)) if file else (name, path, None)


def main() -> None:
    """Align every pair on every text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=named, action="append", required=True)
    parser.add_argument("--text", type=text_file, action="append", required=True)
    parser.add_argument("--field", action="append", default=[])
    parser.add_argument("--notes", default="")
    arguments = parser.parse_args()
    teacher = Sizes(load_tokenizer(arguments.teacher))
    own = set(teacher._bytes)
    table = []
    for name, path in arguments.student:
        student = Sizes(load_tokenizer(path))
        shared = len(own & set(student._bytes)) / len(own)
        for text, file, most in arguments.text:
            texts = read_texts(file, arguments.field, most)
            row = {"text": text, "student": name, "vocabulary": len(student._bytes)}
            table.append(
                row | measure(texts, teacher, student) | {"shared_strings": round(shared, 4)}
            )
            print(table[-1], flush=True)
    write_table("alignment", table, setting(arguments.notes))


if __name__ == "__main__":
    main()
