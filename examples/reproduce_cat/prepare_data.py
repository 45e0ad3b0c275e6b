"""Cut public sets into the parts that the reproduction needs.

    python prepare_data.py SOURCES OUT --pool generation

SOURCES holds the files named in `pools.py`: each line a JSON object with `task`, `prompt` and
`target` (and `answers`, where several are right), or with `text`; .txt files are plain text.
Nothing is downloaded: their licences are yours to read, and `python prepare_data.py --list` says
where each set is published.

Which part an example belongs to depends on its own text alone. Equal prompts of a task are one
example, so that no part knows another's.
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
"""Of a piece of plain text."""


def digest(record: Record) -> str:
    """What an example's place depends on: its task and its prompt, or its text."""
    shown = record.get("prompt", record.get("text"))
    return hashlib.sha256(f"{record['task']}\0{shown}".encode()).hexdigest()


def read_source(folder: Path, name: str, max_words: int) -> Iterator[Record]:
    """Yield one record per prompt or piece of text of a set, as the models will be shown it.

    Raises:
        SystemExit: a file is not there.
    """
    seen = set()
    for file in SOURCES[name].files:
        if not (folder / file).is_file():
            raise SystemExit(f"{folder / file} is not there: {name} is from {SOURCES[name].url}")
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
    """A prompt with its task's name, which stands for the instruction, and its response."""
    words = " ".join(source["prompt"].split()[:max_words])
    return {
        "task": source["task"],
        "prompt": f"{source['task']}: {words}\n",
        "response": source["target"],
        "answers": source.get("answers") or [source["target"]],
    }


def pieces(source: Record, task: str, max_words: int) -> Iterator[Record]:
    """A document in pieces; headings and other short ends are left out."""
    words = source["text"].split()
    for start in range(0, len(words), max_words):
        piece = words[start : start + max_words]
        if len(piece) >= MIN_WORDS:
            yield {"task": task, "text": " ".join(piece)}


def cut(records: Iterable[Record], shares: Sequence[float]) -> dict[str, list[Record]]:
    """Divide a set by the digests of its prompts, each of its tasks alike."""
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
    """Give a share of the records the response of another one of their task, never an equal one."""
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
    """Write JSON lines; a file is there whole or not at all."""
    staged = path.with_suffix(".part")
    with staged.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    staged.rename(path)


def prepare(folder: Path, out: Path, pool: Pool, noise: Sequence[float], seed: int = 0) -> None:
    """Write every part of a pool, the training parts with noisy labels too, in that order."""
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[Record]] = {part: [] for part in PARTS}
    for name, shares in pool.shares.items():
        for part, records in cut(read_source(folder, name, pool.max_words), shares).items():
            parts[part] += records
    if not pool.is_text:
        prompts = ({"task": one["task"], "text": one["prompt"]} for one in parts["teacher"])
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
    parser.add_argument("--list", action="store_true", help="where the sets are, and licences")
    args = parser.parse_args()
    if args.list:
        for name, source in SOURCES.items():
            print(f"{name}\n  {', '.join(source.files)}\n  {source.url}\n  {source.licence}")
    elif args.sources is None or args.out is None:
        parser.error("SOURCES and OUT are needed")
    else:
        prepare(args.sources, args.out, POOLS[args.pool], args.noise)


if __name__ == "__main__":
    main()
