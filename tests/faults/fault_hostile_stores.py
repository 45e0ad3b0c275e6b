"""Hostile stores: a builder for attacks by hand, and random mutants.

Each is made from a valid store. Every digest is updated, so that an attack gets past the checksums.
"""

import hashlib
import json
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from fault_damage import kind
from helpers import head_stores
from helpers.sampled_stores import NUM_SAMPLES
from helpers.stores import VOCAB

from caskd.store.commits import FileRecord
from caskd.store.format import ROW_ENCODINGS, canonical_json, encode_shards, layout

DEEP = 200_000
_WITH_HEAD = head_stores.HEAD + head_stores.NUM_SAMPLES
_DRAWS = {
    "sampled": ("sampled", "compact", NUM_SAMPLES),
    "head": ("head_sampled", "compact", _WITH_HEAD),
    "fitted draws": ("sampled", "fitted2", NUM_SAMPLES),
    "fitted head": ("head_sampled", "fitted2", _WITH_HEAD),
}


@dataclass
class HostileStore:
    """A store to be written: its files, and actions on the folder afterwards."""

    files: dict[str, bytes]
    encoding: str = "compact"  # or `exact`, `fitted2`; or a name of `_DRAWS`
    fits: bool = True  # whether digests are updated
    after: list[Callable[[Path], None]] = field(default_factory=list)

    def json(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change a JSON document; `change` edits it, or returns a new one."""
        value = json.loads(self.files[name])
        changed = change(value)
        self.files[name] = _written(value if changed is None else changed)

    def layout(self, name: str) -> layout.ArrayLayout:
        """The layout of an array of this store."""
        kind, name_of_encoding, num_cells = _DRAWS.get(self.encoding, ("topk", self.encoding, 4))
        encoding = ROW_ENCODINGS[kind, name_of_encoding]
        rows = encoding.layouts(num_cells, 32, 32) + encoding.tables(len(VOCAB), 32)
        fixed = (*layout.TOKEN_LAYOUTS, *layout.EXAMPLE_LAYOUTS, *layout.VOCAB_LAYOUTS)
        return next(a for a in (*fixed, layout.ID_ORDER, *rows) if a.name == name)

    def values(self, name: str, change: Callable[[np.ndarray], None]) -> None:
        """Change values of an array's first shard."""
        import zarr
        from zarr.core.buffer import cpu
        from zarr.storage import MemoryStore

        array = self.layout(name)
        buffers = {
            key.removeprefix("data.zarr/"): cpu.Buffer.from_bytes(data)
            for key, data in self.files.items()
            if key.startswith((f"data.zarr/{name}/", "data.zarr/zarr.json"))
        }
        opened = zarr.open_group(MemoryStore(buffers), mode="r", zarr_format=3)[name]
        values = np.array(opened[: array.shard])
        change(values)
        self.files[array.key(0)] = encode_shards(array, values.astype(array.dtype))[0]

    def payload(self, name: str, change: Callable[[bytearray], Any]) -> None:
        """Change the payload of the first chunk of an array and update its crc32c."""
        key = self.layout(name).key(0)
        data, entries = self._index(name)
        offset, count = entries[0]
        payload = bytearray(data[offset : offset + count - 4])
        changed = change(payload)
        payload = payload if changed is None else bytearray(changed)
        chunk = bytes(payload) + struct.pack("<I", google_crc32c.value(bytes(payload)))
        rest = data[offset + count : len(data) - 16 * len(entries) - 4]
        moved = [(0, len(chunk))] + [
            e if e[0] == 2**64 - 1 else (e[0] + len(chunk) - count, e[1]) for e in entries[1:]
        ]
        self.files[key] = chunk + rest + _footer(moved)

    def index(self, name: str, change: Callable[[list[tuple[int, int]]], None]) -> None:
        """Change the index of an array's first shard and update its crc32c."""
        data, entries = self._index(name)
        change(entries)
        self.files[self.layout(name).key(0)] = data[: len(data) - 16 * len(entries) - 4] + _footer(
            entries
        )

    def _index(self, name: str) -> tuple[bytes, list[tuple[int, int]]]:
        array = self.layout(name)
        data, count = self.files[array.key(0)], -(-array.shard // array.chunk)
        numbers = struct.unpack(f"<{2 * count}Q", data[-16 * count - 4 : -4])
        return data, list(zip(numbers[::2], numbers[1::2], strict=True))

    def write(self, path: Path) -> None:
        """Write the store to `path`."""
        if self.fits:
            fit(self.files)
        for name, data in self.files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        for action in self.after:
            action(path)


def _footer(entries: list[tuple[int, int]]) -> bytes:
    index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return index + struct.pack("<I", google_crc32c.value(index))


def fit(files: dict[str, bytes]) -> None:
    """Update records, commits.sha256 and seal.json to match the files, as far as they parse."""
    lines = []
    listed = files.get("commits/commits.sha256", b"").decode("latin-1").splitlines()
    for line in listed:
        name = "commits/" + line[66:]
        if name in files:
            files[name] = _fitting_record(files, files[name])
            lines.append(f"{hashlib.sha256(files[name]).hexdigest()}  {line[66:]}\n")
    files["commits/commits.sha256"] = "".join(lines).encode()
    try:
        seal = json.loads(files["seal.json"])
        seal["commits_digest"] = hashlib.sha256(files["commits/commits.sha256"]).hexdigest()
        files["seal.json"] = _written(seal)
    except (ValueError, KeyError, TypeError, RecursionError):
        return


def _written(value: Any) -> bytes:
    """Canonical JSON, where `value` allows it."""
    try:
        return canonical_json(value)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(value).encode()


def _fitting_record(files: dict[str, bytes], data: bytes) -> bytes:
    try:
        value = json.loads(data)
        changed = False
        for entry in value["files"]:
            if entry["name"] in files:
                right = vars(FileRecord.of(entry["name"], files[entry["name"]]))
                if entry["sha256"] not in (right["sha256"], None):
                    entry.update(right)
                    changed = True
    except (ValueError, KeyError, TypeError, RecursionError):
        return data
    return _written(value) if changed else data


def mutants(
    sound: dict[str, dict[str, bytes]], count: int, seed: int = 0
) -> list[tuple[str, HostileStore]]:
    """Stores with random changes of one JSON value, or of a few bytes of a chunk or an index."""
    rng, made = random.Random(seed), []
    for number in range(count):
        encoding = rng.choice(sorted(sound))
        store = HostileStore(dict(sound[encoding]), encoding, fits=rng.random() < 0.8)
        if rng.random() < 0.6:
            names = [n for n in store.files if n.endswith(".json") and "environment" not in n]
            classes = sorted({kind(n) for n in names})
            wanted = rng.choice(classes)
            name = rng.choice([n for n in names if kind(n) == wanted])
            store.json(name, lambda value: _mutated(value, rng))
        else:
            name = _mutate_chunk(store, rng)
        made.append((f"mutant {number}: {name}", store))
    return made


_NASTY: list[Any] = [
    None, True, -1, 0, 1, 255, 1 << 31, 1 << 63, 10**30, 1.5, 1e308, "", "x" * 10_000,
    "../../etc/passwd", "/etc/passwd", "\x1b[31m", "\ud800", [], {}, [[]] * 100, {"name": "x"},
]  # fmt: skip


def _mutated(value: Any, rng: random.Random) -> Any:
    """`value` with one of its values changed, removed or repeated."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(_NASTY)
    key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
    action = rng.random()
    if action < 0.1:
        del value[key]
    elif action < 0.2 and isinstance(value, list):
        value.append(value[key])
    elif action < 0.3 and isinstance(value, dict):
        value[str(rng.choice(_NASTY))] = rng.choice(_NASTY)
    else:
        value[key] = _mutated(value[key], rng)
    return value


def _mutate_chunk(store: HostileStore, rng: random.Random) -> str:
    names = sorted({n.split("/")[1] for n in store.files if n.count("/") > 2})
    name = rng.choice(names)

    def scramble(data: bytearray) -> None:
        for _ in range(rng.randint(1, 4)):
            offset = rng.randrange(min(len(data), rng.choice([20, len(data)])))
            data[offset] = rng.randrange(256)

    def repoint(entries: list[tuple[int, int]]) -> None:
        chosen = rng.randrange(min(len(entries), 2))
        numbers = [0, 1, entries[0][1], 1 << 31, 1 << 62, 2**64 - 1, 2**64 - 2]
        entries[chosen] = rng.choice(numbers), rng.choice(numbers)

    if rng.random() < 0.8:
        store.payload(name, scramble)
    else:
        store.index(name, repoint)
    return name


def link(name: str, target: str) -> Callable[[Path], None]:
    """Replace a file or folder by a link."""

    def action(path: Path) -> None:
        _clear(path / name)
        (path / name).symlink_to(target)

    return action


def pipe(name: str) -> Callable[[Path], None]:
    """Replace a file by a named pipe."""

    def action(path: Path) -> None:
        _clear(path / name)
        os.mkfifo(path / name)

    return action


def huge(name: str) -> Callable[[Path], None]:
    """Extend a file to 20 GB as a sparse file."""
    return lambda path: os.truncate(path / name, 20 << 30)


def directory(name: str) -> Callable[[Path], None]:
    """Replace a file by a folder."""

    def action(path: Path) -> None:
        _clear(path / name)
        (path / name).mkdir()

    return action


def _clear(path: Path) -> None:
    if path.is_dir():
        path.rename(path.with_name(path.name + ".aside"))
    else:
        path.unlink(missing_ok=True)
