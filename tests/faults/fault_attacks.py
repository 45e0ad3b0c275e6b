"""Hostile stores by hand: more than sixty attacks, each a single change to a valid store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fault_damage import make
from fault_hostile_stores import DEEP, HostileStore, directory, huge, link, pipe
from fault_jobs import everything
from fault_value_attacks import Attack, value_attacks
from helpers import head_stores, sampled_stores

STORE, PLAN, SHARD, SEAL = "store.json", "commits/plan.json", "commits/00000.json", "seal.json"
DRAWS = ("sampled", "head", "fitted draws", "fitted head")
LIST, ARGMAX = "commits/commits.sha256", "data.zarr/argmax/zarr.json"


def sound_stores(where: Path) -> dict[str, dict[str, bytes]]:
    """Files of a valid topk store in each encoding, and of draws without and with a head."""
    sampled_stores.make_store(where / "sampled", encoding="compact")
    head_stores.make_store(where / "head", encoding="compact")
    sampled_stores.make_store(where / "fitted draws", encoding="fitted2")
    head_stores.make_store(where / "fitted head", encoding="fitted2")
    paths = [make(where / encoding, encoding) for encoding in ("compact", "exact", "fitted2")]
    return {
        path.name: {name: data for name, data in everything(path).items() if not name.endswith("/")}
        for path in (*paths, *(where / name for name in DRAWS))
    }


def hostile_stores(sound: dict[str, dict[str, bytes]]) -> list[tuple[str, HostileStore]]:
    """Every attack on a fresh copy of a valid store."""
    made = []
    for name, attack in attacks().items():
        prefix = name.partition(":")[0]
        encoding = prefix if prefix in sound else "compact"
        store = HostileStore(dict(sound[encoding]), encoding)
        attack(store)
        made.append((name, store))
    return made


def attacks() -> dict[str, Attack]:
    """All attacks, by name."""
    return {**_geometry(), **_identity(), **_texts(), **_paths(), **_records(), **_zarr(),
            **_chunks(), **value_attacks()}  # fmt: skip


def _set(file: str, *path: str | int, value: Any) -> Attack:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return lambda s: s.json(file, change)


def _drop(file: str, *path: str) -> Attack:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return lambda s: s.json(file, change)


def _text(file: str, data: bytes) -> Attack:
    return lambda s: s.files.update({file: data})


def _after(action: Callable[[Path], None]) -> Attack:
    return lambda s: s.after.append(action)


def _geometry() -> dict[str, Attack]:
    values = {
        "num_examples": (-1, 10**15, 1.5), "num_tokens": (10**18, "7"), "num_rows": (0, 10**12),
        "num_shards": (10**9, 1 << 20, None), "shard_rows": (10**12, True, 0, 7, 2**24 - 1),
        "chunk_rows": (0, 1, [], 10**9),
    }  # fmt: skip
    made = {
        f"{field} {value}": _set(STORE, "geometry", field, value=value)
        for field, wrong in values.items()
        for value in wrong
    }
    return {**made, "no geometry": _drop(STORE, "geometry"),
            "an unknown count": _set(STORE, "geometry", "num_pickles", value=3)}  # fmt: skip


def _identity() -> dict[str, Attack]:
    return {
        "top_k of a billion": _set(STORE, "identity", "capture", "top_k", value=10**9),
        "top_k 65535": _set(STORE, "identity", "capture", "top_k", value=65535),
        "top_k a text": _set(STORE, "identity", "capture", "top_k", value="4"),
        "top_k negative": _set(STORE, "identity", "capture", "top_k", value=-4),
        "draws, but how many": _set(STORE, "identity", "capture", "kind", value="sampled"),
        "sampled: a billion draws": _set(STORE, "identity", "capture", "num_samples", value=10**9),
        "sampled: no draws": _set(STORE, "identity", "capture", "num_samples", value=0),
        "sampled: 60,000 draws": _set(STORE, "identity", "capture", "num_samples", value=60_000),
        "sampled: a text of draws": _set(STORE, "identity", "capture", "num_samples", value="9"),
        "sampled: said to be a top-k": _set(STORE, "identity", "capture", "kind", value="topk"),
        "sampled: kind a list": _set(STORE, "identity", "capture", "kind", value=["sampled"]),
        "head: a billion draws": _set(STORE, "identity", "capture", "num_samples", value=10**9),
        "head: no head": _set(STORE, "identity", "capture", "head", value=0),
        "head: a head of -1": _set(STORE, "identity", "capture", "head", value=-1),
        "head: a head of text": _set(STORE, "identity", "capture", "head", value="3"),
        "head: a longer head": _set(STORE, "identity", "capture", "head", value=4),
        "head: a head dropped": _drop(STORE, "identity", "capture", "head"),
        "head: said to be draws": _set(STORE, "identity", "capture", "kind", value="sampled"),
        "head: of version 1": _set(STORE, "format_version", value=1),
        "a vocabulary of 10**12": _set(STORE, "identity", "vocabulary", "size", value=10**12),
        "EOS outside the vocabulary": _set(STORE, "identity", "vocabulary", "eos_id", value=10**9),
        "negative special ids": _set(STORE, "identity", "vocabulary", "special_ids", value=[-1]),
        "no vocabulary": _drop(STORE, "identity", "vocabulary"),
        "an unknown encoding": _set(STORE, "identity", "encoding", value="evil"),
        "an unknown kind": _set(STORE, "identity", "capture", "kind", value="pickle"),
        "a teacher that is a list": _set(STORE, "identity", "teacher", "name", value=["x"]),
        "identity a list": _set(STORE, "identity", value=[]),
        "tasks a number": _set(STORE, "tasks", value=7),
        "tasks of numbers": _set(STORE, "tasks", value=[1, 2]),
        "a million tasks": _set(STORE, "tasks", value=["a"] * 10**6),
        "no tasks": _set(STORE, "tasks", value=[]),
        "another format": _set(STORE, "format", value="\x1b[2Jrm"),
        "version 2": _set(STORE, "format_version", value=2),
        "a version of a thousand words": _set(STORE, "format_version", value="v " * 1000),
    }


def _texts() -> dict[str, Attack]:
    return {
        "deep lists": _text(STORE, b"[" * DEEP),
        "deep objects": _text(STORE, b'{"a":' * DEEP),
        "a deep identity": _set(STORE, "identity", "text", "more", value=_nested(100)),
        "not UTF-8": _text(STORE, b'\xff\xfe{"format": 1}'),
        "NaN": _text(STORE, b'{"format": NaN}'),
        "a number of 100,000 digits": _text(STORE, b'{"format": ' + b"9" * 100_000 + b"}"),
        "empty": _text(STORE, b""),
        "a list": _text(STORE, b"[]"),
        "six million bytes": _text(STORE, b'{"format":"' + b"x" * 6_000_000 + b'"}'),
        "fifteen million bytes of lists": _text(PLAN, b"[" + b"[]," * 5_000_000 + b"[]]"),
        "fifteen million bytes of texts": _text(PLAN, b'["a"' + b',"a"' * 3_500_000 + b"]"),
        "a deep record": _text(SHARD, b"[" * DEEP),
        "a deep seal": _text(SEAL, b"[" * DEEP),
        "a seal of texts": _set(SEAL, "bytes", value={"argmax": "many"}),
        "a seal without bytes": _drop(SEAL, "bytes"),
        "a digest list of binary": _unfit(_text(LIST, bytes(range(256)) * 100)),
        "an empty digest list": _unfit(_text(LIST, b"")),
    }


def _nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


def _unfit(attack: Attack) -> Attack:
    def changed(store: HostileStore) -> None:
        store.fits = False
        attack(store)

    return changed


def _paths() -> dict[str, Attack]:
    chunk = "data.zarr/argmax/c/0"
    return {
        "store.json a pipe": _after(pipe(STORE)),
        "store.json linked outside": _after(link(STORE, "/etc/passwd")),
        "store.json a folder": _after(directory(STORE)),
        "seal.json a pipe": _after(pipe(SEAL)),
        "seal.json /dev/zero": _after(link(SEAL, "/dev/zero")),
        "a record a pipe": _after(pipe(PLAN)),
        "a record /dev/zero": _after(link(SHARD, "/dev/zero")),
        "the digest list /dev/zero": _after(link(LIST, "/dev/zero")),
        "a chunk linked outside": _after(link(chunk, "/etc/passwd")),
        "a chunk a pipe": _after(pipe(chunk)),
        "a chunk /dev/zero": _after(link(chunk, "/dev/zero")),
        "a chunk a folder": _after(directory(chunk)),
        "zarr.json a pipe": _after(pipe(ARGMAX)),
        "commits linked": _after(link("commits", "commits.aside")),
        "data.zarr linked": _after(link("data.zarr", "data.zarr.aside")),
        "an array linked": _after(link("data.zarr/argmax", "argmax.aside")),
        "a link that circles": _after(link("data.zarr/loop", "..")),
        "store.json of 20 GB": _after(huge(STORE)),
        "a record of 20 GB": _after(huge(PLAN)),
        "a digest list of 20 GB": _after(huge(LIST)),
        "a chunk of 20 GB": _after(huge(chunk)),
    }


def _records() -> dict[str, Attack]:
    entry = ("files", 0)
    names = {
        "../outside": "../outside", "an absolute name": "/etc/passwd", "a long name": "a" * 5000,
        "a name with a line": "data.zarr/x\ny", "a name with NUL": "a\x00b",
        "a name with a backslash": "..\\x", "a name that is no text": 7,
        "a dot name": "./store.json",
    }  # fmt: skip
    made = {what: _set(SHARD, *entry, "name", value=name) for what, name in names.items()}
    wrong = {
        "a negative size": ("size", -1), "a size of 2**63": ("size", 1 << 63),
        "a size of 1.5": ("size", 1.5), "a checksum of letters": ("crc32", "zzzzzzzz"),
        "a digest that is null": ("sha256", None),
    }  # fmt: skip
    made |= {what: _set(SHARD, *entry, key, value=value) for what, (key, value) in wrong.items()}
    return {
        **made,
        "a file named twice": lambda s: s.json(SHARD, lambda v: v["files"].append(v["files"][0])),
        "a file not named": lambda s: s.json(SHARD, lambda v: v["files"].pop() and None),
        "no files": _set(SHARD, "files", value=[]),
        "files an object": _set(SHARD, "files", value={"a": 1}),
        "a file of another shard": _set(SHARD, *entry, "name", value="data.zarr/argmax/c/1"),
        "another unit": _set(SHARD, "unit", value="../00001"),
        "rows true": _set(SHARD, "num_rows", value=True),
        "rows negative": _set(SHARD, "num_rows", value=-7),
        "statuses a list": _set(SHARD, "statuses", value=["ok"]),
        "a negative status": _set(SHARD, "statuses", value={"ok": -1}),
        "an unknown field": _set(SHARD, "__class__", value="os.system"),
        "a record that is null": _text(SHARD, b"null"),
    }


def _zarr() -> dict[str, Attack]:
    pickle = [{"name": "numcodecs.pickle", "configuration": {}}]
    v2 = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "order": "C",
          "compressor": None, "fill_value": None,
          "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]}  # fmt: skip
    consolidated = {"kind": "inline", "must_understand": False, "metadata": {"../x": {}}}

    def second_format(store: HostileStore) -> None:
        store.files["data.zarr/argmax/.zarray"] = json.dumps(v2).encode()
        _text(ARGMAX, json.dumps(v2).encode())(store)

    return {
        "zarr 2 with pickle": second_format,
        "zarr 2 beside zarr 3": _text("data.zarr/argmax/.zarray", json.dumps(v2).encode()),
        "zarr_format 2": _set(ARGMAX, "zarr_format", value=2),
        "the pickle codec": _set(ARGMAX, "codecs", value=pickle),
        "gzip": _set(ARGMAX, "codecs", value=[{"name": "gzip", "configuration": {"level": 1}}]),
        "an unknown codec": _set(ARGMAX, "codecs", value=[{"name": "evil.codec"}]),
        "dtype object": _set(ARGMAX, "data_type", value="|O"),
        "shape 10**15": _set(ARGMAX, "shape", value=[10**15]),
        "chunks of 0": _set(ARGMAX, "chunk_grid", "configuration", "chunk_shape", value=[0]),
        "another fill value": _set(ARGMAX, "fill_value", value=1),
        "attributes of 5 MB": _set(ARGMAX, "attributes", value={"a": "x" * 5_000_000}),
        "zarr.json a list": _text(ARGMAX, b"[1]"),
        "zarr.json missing": lambda s: s.files.pop(ARGMAX) and None,
        "vocab_bytes of 10**15": _set("data.zarr/vocab_bytes/zarr.json", "shape", value=[10**15]),
        "vocab_bytes of -1": _set("data.zarr/vocab_bytes/zarr.json", "shape", value=[-1]),
        "vocab_bytes of text": _set("data.zarr/vocab_bytes/zarr.json", "shape", value="x"),
        "vocab_bytes cut": _set("data.zarr/vocab_bytes/zarr.json", "shape", value=[3]),
        "consolidated metadata": _set(
            "data.zarr/zarr.json", "consolidated_metadata", value=consolidated
        ),
        "an array nobody knows": _text("data.zarr/extra/zarr.json", b"{}"),
    }


def _put(offset: int, data: bytes) -> Callable[[bytearray], None]:
    def change(payload: bytearray) -> None:
        payload[offset : offset + len(data)] = data

    return change


def _pco_bomb() -> bytes:
    from pcodec import ChunkConfig, standalone

    return bytes(standalone.simple_compress(np.zeros(1 << 24, np.uint32), ChunkConfig()))


def _blosc_bomb() -> bytes:
    from numcodecs import blosc

    return bytes(blosc.compress(np.zeros(1 << 28, np.uint8), b"zstd", 9, blosc.SHUFFLE, 0))


def _chunks() -> dict[str, Attack]:
    two_gb = (2**31 - 1).to_bytes(4, "little")
    blosc, packed = "num_kept", "argmax"
    return {
        "blosc says 2 GB": lambda s: s.payload(blosc, _put(4, two_gb)),
        "blosc blocks of 0": lambda s: s.payload(blosc, _put(8, bytes(4))),
        "blosc blocks of 2 GB": lambda s: s.payload(blosc, _put(8, two_gb)),
        "blosc type size 0": lambda s: s.payload(blosc, _put(3, b"\0")),
        "blosc flags": lambda s: s.payload(blosc, _put(2, b"\xff")),
        "blosc size wrong": lambda s: s.payload(blosc, _put(12, b"\x01\0\0\0")),
        "blosc bomb": lambda s: s.payload(blosc, lambda _: _blosc_bomb()),
        "blosc body of noise": lambda s: s.payload(blosc, _put(16, b"\xa5" * 16)),
        "blosc nothing": lambda s: s.payload(blosc, lambda _: b""),
        "pcodec bomb": lambda s: s.payload(packed, lambda _: _pco_bomb()),
        "pcodec noise": lambda s: s.payload(packed, lambda p: b"pco!" + b"\xff" * len(p)),
        "pcodec cut": lambda s: s.payload(packed, lambda p: bytes(p[: len(p) // 2])),
        "pcodec nothing": lambda s: s.payload(packed, lambda _: b""),
        "sampled: pcodec bomb": lambda s: s.payload("sampled_place_steps", lambda _: _pco_bomb()),
        "sampled: pcodec cut": lambda s: s.payload(
            "sampled_place_counts", lambda p: bytes(p[: len(p) // 2])
        ),
        "head: pcodec bomb": lambda s: s.payload("head_id_codes", lambda _: _pco_bomb()),
        "head: pcodec cut": lambda s: s.payload("head_id_codes", lambda p: bytes(p[: len(p) // 2])),
        "index outside": lambda s: s.index(packed, lambda e: e.__setitem__(0, (1 << 40, 64))),
        "index wraps": lambda s: s.index(packed, lambda e: e.__setitem__(0, (2**64 - 8, 16))),
        "index says absent": lambda s: s.index(
            packed, lambda e: e.__setitem__(0, (2**64 - 1, 2**64 - 1))
        ),
        "index half absent": lambda s: s.index(packed, lambda e: e.__setitem__(0, (2**64 - 1, 8))),
        "index of nothing": lambda s: s.index(packed, lambda e: e.__setitem__(0, (0, 0))),
        "an empty shard": _text("data.zarr/argmax/c/0", b""),
    }
