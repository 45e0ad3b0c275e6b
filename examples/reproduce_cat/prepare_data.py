"""Split public data sets into the parts of the reproduction.

    python prepare_data.py SOURCES OUT --pool generation

SOURCES holds the files named in `pools.py`. Each line is a JSON object with `task`, `prompt` and
`target` (and `answers`, if several are right), or with `text`; .txt files are plain text. This
script downloads nothing: `python prepare_data.py --list` prints the source and the licence of each
set.

The part of an example depends on its own text alone. Equal prompts of a task are one example, so no
prompt is in two parts.
"""

import argparse
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from pools import PARTS, POOLS, SOURCES, Pool

Record = dict[str, Any]

NOISE_SEED = 20
MIN_WORDS = 20
"""Shorter pieces of plain text are dropped."""


def digest(record: Record) -> str:
    """Digest of the task and the prompt, or the text; it decides the part of an example."""
    given = record.get("prompt", record.get("text"))
    return hashlib.sha256(f"{record['task']}\0{given}".encode()).hexdigest()


def read_source(folder: Path, name: str, max_words: int) -> Iterator[Record]:
    """Yield one record per prompt or piece of text of a set, in the form that models read.

    Raises:
        SystemExit: a file is missing.
    """
    seen = set()
    for file in SOURCES[name].files:
        if not (folder / file).is_file():
            raise SystemExit(f"{folder / file} does not exist; get {name} from {SOURCES[name].url}")
        for line in (folder / file).read_text(encoding="utf-8").splitlines():
            source = {"text": line} if file.endswith(".txt") else json.loads(line)
            for record in (
                pieces(source, name, max_words)
                if "text" in source
                else [example(source, max_words)]
            ):
                if (key := digest(record)) not in seen:
                    seen.add(key)
                    yield {"id": key[:16], **record}


def example(source: Record, max_words: int) -> Record:
    """A prompt that starts with its task's name as the instruction, and its response."""
    words = " ".join(source["prompt"].split()[:max_words])
    return {
        "task": source["task"],
        "prompt": f"{source['task']}: {words}\n",
        "response": source["target"],
        "answers": source.get("answers") or [source["target"]],
    }


def pieces(source: Record, task: str, max_words: int) -> Iterator[Record]:
    """A document in pieces, without headings and other short pieces."""
    words = source["text"].split()
    for start in range(0, len(words), max_words):
        piece = words[start : start + max_words]
        if len(piece) >= MIN_WORDS:
            yield {"task": task, "text": " ".join(piece)}


def cut(records: Iterable[Record], shares: Sequence[float]) -> dict[str, list[Record]]:
    """Split each task of a set by the digests of its prompts."""
    by_task = defaultdict(list)
    for record in records:
        by_task[record["task"]].append(record)
    parts: dict[str, list[Record]] = {part: [] for part in PARTS}
    for own in by_task.values():
        own.sort(key=digest)
        ends = [round(len(own) * share) for share in accumulate(shares)]
        for part, start, end in zip(PARTS, [0, *ends], ends, strict=False):
            parts[part] += own[start:end]
    return parts


def corrupt(records: Sequence[Record], share: float, seed: int = NOISE_SEED) -> list[Record]:
    """Replace a fraction of the responses by a different one of the same task."""
    rng = random.Random(seed)
    by_task = defaultdict(list)
    for record in records:
        by_task[record["task"]].append(record["response"])
    noisy = []
    for record in records:
        others = by_task[record["task"]]
        if rng.random() >= share or len(set(others)) == 1:
            noisy.append(record)
            continue
        while (wrong := rng.choice(others)) == record["response"]:
            pass
        noisy.append({**record, "response": wrong, "answers": [wrong]})
    return noisy


def write(path: Path, records: Iterable[Record]) -> None:
    """Write JSON lines; the rename is atomic, so no file is incomplete."""
    staged = path.with_suffix(".part")
    with staged.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    staged.rename(path)


def prepare(folder: Path, out: Path, pool: Pool, noise: Sequence[float], seed: int = 0) -> None:
    """Write every part of a pool, each training part followed by its versions with noisy labels."""
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[Record]] = {part: [] for part in PARTS}
    for name, shares in pool.shares.items():
        for part, records in cut(read_source(folder, name, pool.max_words), shares).items():
            parts[part] += records
    if not pool.is_text:
        prompts = ({"task": r["task"], "text": r["prompt"]} for r in parts["teacher"])
        write(out / "teacher-prompts.jsonl", prompts)
    for part, records in parts.items():
        random.Random(seed).shuffle(records)
        write(out / f"{part}.jsonl", records)
        for share in noise if part in ("teacher", "student") and not pool.is_text else ():
            write(out / f"{part}-noisy{share:.0%}.jsonl".replace("%", ""), corrupt(records, share))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--pool", choices=tuple(POOLS), default="generation")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.2, 0.4])
    parser.add_argument(
        "--list", action="store_true", help="print the sources and licences of the sets"
    )
    args = parser.parse_args()
    if args.list:
        for name, source in SOURCES.items():
            print(f"{name}\n  {', '.join(source.files)}\n  {source.url}\n  {source.licence}")
    elif args.sources is None or args.out is None:
        parser.error("SOURCES and OUT are required")
    else:
        prepare(args.sources, args.out, POOLS[args.pool], args.noise)


if __name__ == "__main__":
    main()
