"""Plan a store: lay out all examples and publish the empty store before the teacher runs.

Under teacher forcing, every length is known after tokenisation. Examples are laid out in corpus
order, next-fit: no example straddles two shards, and the rest of a shard stays empty.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.commits import CommitRecord, commit_record, publish
from caskd.store.corpus import TokenizedExample
from caskd.store.errors import CaskdError, CorruptError, IdentityError, UsageError
from caskd.store.format import (
    COMMITS,
    DATA,
    SEAL,
    STAGING,
    STORE_JSON,
    StoreSpec,
    check_identity,
    encode_whole,
    layout,
    needed_version,
    untrusted_json,
    written_encodings,
)
from caskd.store.io import files, refuse_mixup
from caskd.store.write.geometry import Axis, Geometry

_BEFORE_A_PLAN = frozenset({STAGING, COMMITS})


def find_store(path: str | Path) -> StoreSpec | None:
    """The spec of the store at `path`; finishes a plan that is committed but not complete.

    Returns:
        None if there is no store, or if files of its plan are lost. `plan_store` restores them from
        the same inputs.

    Raises:
        UsageError: `path` holds something other than a store.
    """
    if "://" in str(path):
        raise UsageError(
            f"{path}: expected a local directory; write the store to one, then copy it with "
            "caskd store push"
        )
    root = Path(path)
    with files.reading(str(path)):
        if not root.exists():
            return None
        if not root.is_dir():
            raise UsageError(f"{path} is a file; expected a directory; pass another --store")
        # Listed before the record is read: another process adds files only after its record.
        foreign = sorted({*os.listdir(root)} - _BEFORE_A_PLAN)
    sealed = files.size_inside(root, SEAL) is not None
    if sealed or publish.is_complete(root, commit_record.PLAN):
        return read_spec(root, str(path))
    damaged = STORE_JSON in foreign or commit_record.is_committed(root, commit_record.PLAN)
    if foreign and not damaged:
        refuse_mixup(root, f"--store {path}", "store")
        raise UsageError(
            f"{path}: holds {foreign[0]!r} but no store; expected an empty or new directory; "
            "pass another --store"
        )
    return None


def check_fillable(spec: StoreSpec, path: str | Path) -> None:
    """Check that missing shards of a planned store can be written.

    Raises:
        IdentityError: shards are missing, and no new shard may have the store's encoding.
    """
    shards = set(map(commit_record.shard_unit, range(spec.num_shards)))
    missing = shards - set(commit_record.committed_units(Path(path)))
    if missing and not spec.row_encoding.is_written:
        raise IdentityError(
            f"{path}: {len(missing)} of {spec.num_shards} shards are missing, and its encoding is "
            f"{spec.encoding}, which this caskd reads but does not write; expected "
            f"{' or '.join(written_encodings())}; pass another --store for a new capture, or "
            "complete it with the caskd that planned it"
        )


def read_spec(root: Path, where: str) -> StoreSpec:
    """Read store.json at `root`; `where` names the store in errors."""
    return StoreSpec.from_json(files.read_small(root, STORE_JSON), f"{where}/{STORE_JSON}")


def plan_store(
    path: str | Path,
    identity: Mapping[str, Any],
    examples: Iterable[TokenizedExample],
    *,
    shard_rows: int,
    vocab: Sequence[bytes],
) -> StoreSpec:
    """Write the token and example arrays and publish the empty store, `store.json` last.

    Args:
        path: a new or empty directory, or a store of the same identity.
        identity: everything that the values depend on (see StoreSpec).
        examples: tokenized examples in corpus order, read once.
        shard_rows: rows of a shard.
        vocab: bytes of each token, index = id.

    Returns:
        The spec of the store at `path`.

    Raises:
        IdentityError: `path` holds a store of another identity, perhaps planned meanwhile.
        UsageError: no example has a row, or a response has more rows than a shard.
        CorruptError: the existing plan has lost files, and these inputs give a different plan.
        StoreWriteError: the disk is full, or the directory is not writable.
    """
    root = Path(path)
    layout.chunk_rows_for(shard_rows)
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    found = find_store(root)
    if found is None:
        shard_rows = _survivor_rows(root, identity, shard_rows)
        chunk_rows = layout.chunk_rows_for(shard_rows)
        staged = publish.new_folder(root)
        try:
            files.make_directories(root / COMMITS, durable=True)
            publish.check_writable(root)
            _decide_plan(root, staged, identity, examples, (shard_rows, chunk_rows), vocab)
        except FileNotFoundError:
            publish.check_overtaken(root, commit_record.PLAN)
        except CaskdError:
            files.remove_tree(staged)
            _remove_empty([root / STAGING, root / COMMITS, *created])
            raise
        finally:
            files.remove_tree(staged)
            publish.sweep(root)
        found = find_store(root)
        if found is None:
            _remove_empty([root / STAGING])
            raise CorruptError(
                f"{path}: files of its plan are lost, and these inputs give a different plan",
                cure="pass the inputs that the store was planned with, or another --store",
            )
    check_identity(found, identity, str(path))
    return found


def _survivor_rows(root: Path, identity: Mapping[str, Any], shard_rows: int) -> int:
    """Rows of a shard: those of an existing store.json whose plan is restored, if there is one."""
    if files.size_inside(root, STORE_JSON) is None:
        return shard_rows
    survivor = read_spec(root, str(root))
    check_identity(survivor, identity, str(root))
    return survivor.shard_rows


def _no_rows(statuses: Mapping[str, int]) -> UsageError:
    """The error of a corpus without rows, from the counts of its examples' statuses."""
    if set(statuses) == {"unfinished"}:
        return UsageError(
            f"--data: all {statuses['unfinished']:,} answers are unfinished (finished: false), and "
            "such answers are left out; expected some that ended by themselves; pass "
            "--on-unfinished keep, or write them again with a larger --max-new-tokens"
        )
    counts = ", ".join(f"{n} {status}" for status, n in statuses.items()) or "none"
    return UsageError(
        f"--data: no example has a response token to predict (examples: {counts}); expected at "
        "least one; check --data"
    )


def _decide_plan(
    root: Path,
    staged: Path,
    identity: Mapping[str, Any],
    examples: Iterable[TokenizedExample],
    shard_and_chunk: tuple[int, int],
    vocab: Sequence[bytes],
) -> None:
    """Stage every file of the plan under `staged`, then create its record exclusively."""
    shard_rows, chunk_rows = shard_and_chunk
    geometry = Geometry(shard_rows)
    token_ids, is_response = (Axis(array, staged) for array in layout.TOKEN_LAYOUTS)
    for example in examples:
        geometry.append(example)
        token_ids.append(example.token_ids)
        is_response.append(example.is_response)
    if geometry.num_rows == 0:
        raise _no_rows(geometry.statuses)
    spec = StoreSpec(
        identity=json.loads(json.dumps(identity)),
        num_examples=len(geometry.columns["status"]),
        num_tokens=geometry.num_tokens,
        num_rows=geometry.num_rows,
        num_shards=geometry.num_shards,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        tasks=tuple(geometry.tasks),
        format_version=needed_version(identity, geometry.statuses),
    )
    problem = untrusted_json.geometry_problem({**vars(spec), "num_cells": spec.num_cells})
    if problem:
        capture = spec.identity["capture"]
        cells = ", ".join(f"{key} {capture[key]}" for key in spec.row_kind.cells_keys)
        raise UsageError(
            f"--shard-rows {shard_rows}: not possible with {cells} ({problem}); expected a value "
            "within these limits; pass another --shard-rows"
        )
    contents = _plan_contents(spec, geometry, vocab)
    listed = [publish.stage(staged, name, data) for name, data in contents.items()]
    listed += token_ids.close() + is_response.close()
    facts: dict[str, Any] = {"num_rows": 0, "statuses": dict(geometry.statuses)}
    if spec.format_version > 1:
        facts["counts"] = dict(geometry.text_counts)
    publish.publish(root, staged, CommitRecord(commit_record.PLAN, tuple(listed), facts))


def _plan_contents(spec: StoreSpec, geometry: Geometry, vocab: Sequence[bytes]) -> dict[str, bytes]:
    contents = {f"{DATA}/zarr.json": layout.GROUP_METADATA}
    for array in layout.EXAMPLE_LAYOUTS:
        values = np.asarray(geometry.columns[array.name], dtype=array.dtype)
        contents.update(encode_whole(array, values))
    joined = np.frombuffer(b"".join(vocab), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum([len(token) for token in vocab])]).astype(np.int64)
    contents.update(encode_whole(layout.VOCAB_LAYOUTS[0], joined))
    contents.update(encode_whole(layout.VOCAB_LAYOUTS[1], offsets))
    contents.update(layout.row_metadata(spec.row_layouts(), spec.num_shards))
    contents[STORE_JSON] = spec.to_json()
    return contents


def _remove_empty(directories: Iterable[Path]) -> None:
    """Remove the empty folders of a plan that failed."""
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()
