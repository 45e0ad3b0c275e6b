"""Power loss: record the file operations of a job, then rebuild a possible state after a cut.

A file system keeps a name once its folder was synced and bytes once their file was; of everything
else any part may be lost. A folder's own name belongs to the folder above it.
"""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from fault_disk import still_readable
from fault_jobs import Tally, everything, hooked, job, reference

from caskd.store.commits import commit_record
from caskd.store.errors import StoreError
from caskd.store.verify import verify_store

Folders = dict[int, dict[str, int]]  # node -> name -> node
Contents = dict[int, bytes]
SECTOR = 512
ROOT = 0


@dataclass
class Operation:
    """One change; `node` numbers a file or folder, `parent` is the folder that holds its name."""

    kind: str
    parent: int = -1
    name: str = ""
    node: int = -1
    source: tuple[int, str] = (-1, "")
    content: bytes = b""
    note: str = ""


@dataclass
class Recorder:
    """A fault hook that keeps a log, and the tree as the running program sees it."""

    top: Path
    log: list[Operation] = field(default_factory=list)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    next_node: int = 1

    def __call__(self, point: str, *paths: Path) -> None:
        """Record an operation before it runs."""
        method = getattr(self, "_" + point.replace(".", "_"), None)
        if method is not None:
            method(*paths)
        elif point.endswith((".won", ".sealed")):
            self.log.append(Operation("note", note=point))

    def _find(self, path: Path) -> tuple[int, str]:
        parts = path.relative_to(self.top).parts
        if not parts:
            return -1, ""
        node = ROOT
        for part in parts[:-1]:
            node = self.folders[node][part]
        return node, parts[-1]

    def _make(self, path: Path, kind: str) -> None:
        parent, name = self._find(path)
        node, self.next_node = self.next_node, self.next_node + 1
        self.folders[parent][name] = node
        if kind == "make folder":
            self.folders[node] = {}
        self.log.append(Operation(kind, parent, name, node))

    def _directory_make(self, path: Path) -> None:
        self._make(path, "make folder")

    def _file_write(self, path: Path) -> None:
        self._make(path, "make file")

    def _file_fsync(self, path: Path) -> None:
        parent, name = self._find(path)
        node = self.folders[parent][name]
        self.log.append(Operation("write", node=node, content=path.read_bytes()))
        self.log.append(Operation("sync file", node=node))

    def _file_rename(self, source: Path, target: Path) -> None:
        before, (parent, name) = self._find(source), self._find(target)
        if before[1] not in self.folders[before[0]] or target.is_dir():
            return  # it will fail, and the program knows what to do then
        node = self.folders[before[0]].pop(before[1])
        self.folders[parent][name] = node
        self.log.append(Operation("rename", parent, name, node, before))

    def _file_link(self, source: Path, target: Path) -> None:
        before, (parent, name) = self._find(source), self._find(target)
        if name not in self.folders[parent]:
            node = self.folders[before[0]][before[1]]
            self.folders[parent][name] = node
            self.log.append(Operation("link", parent, name, node))

    def _file_unlink(self, path: Path) -> None:
        parent, name = self._find(path)
        if self.folders[parent].pop(name, None) is not None:
            self.log.append(Operation("remove", parent, name))

    def _tree_remove(self, path: Path) -> None:
        parent, name = self._find(path)
        folder = self.folders[parent][name]
        for inside in sorted(self.folders[folder]):
            if (path / inside).is_dir():
                self._tree_remove(path / inside)
            else:
                self._file_unlink(path / inside)
        del self.folders[parent][name]
        self.log.append(Operation("remove", parent, name))

    def _directory_fsync(self, path: Path) -> None:
        parent, name = self._find(path)
        node = ROOT if parent < 0 else self.folders[parent][name]
        self.log.append(Operation("sync folder", node=node))


def left_after_a_cut(log: list[Operation], rng: random.Random) -> tuple[Folders, Contents]:
    """A state of the disk that a cut after `log` may leave."""
    synced: dict[int, int] = {}
    for place, operation in enumerate(log):
        if operation.kind == "sync folder":
            synced[operation.node] = place
    mode = rng.choice(["nothing", "everything", "a beginning", "any part"])
    limit = rng.randrange(len(log) + 1)
    kept = {
        "nothing": lambda place: False,
        "everything": lambda place: True,
        "a beginning": lambda place: place < limit,
        "any part": lambda place: rng.random() < 0.5,
    }[mode]
    folders: dict[int, dict[str, int]] = {ROOT: {}}
    contents: dict[int, bytes] = {}
    for place, operation in enumerate(log):
        if operation.kind == "write":
            contents[operation.node] = _torn(operation.content, rng)
        elif operation.kind == "sync file":
            contents[operation.node] = log[place - 1].content  # its write comes just before
        if operation.kind == "make folder":
            folders[operation.node] = {}
        if operation.parent >= 0 and (synced.get(operation.parent, -1) > place or kept(place)):
            _apply(folders, operation)
    return folders, contents


def _torn(content: bytes, rng: random.Random) -> bytes:
    """Possible content of a file that was not synced."""
    sectors = rng.randrange(len(content) // SECTOR + 1)
    return content[: sectors * SECTOR] + bytes(rng.choice([0, len(content) - sectors * SECTOR]))


def _apply(folders: Folders, operation: Operation) -> None:
    if operation.kind == "remove":
        folders[operation.parent].pop(operation.name, None)
        return
    parent, name = operation.source
    if parent >= 0 and folders[parent].get(name) == operation.node:
        del folders[parent][name]
    folders[operation.parent][operation.name] = operation.node


def build(where: Path, folders: Folders, contents: Contents) -> None:
    """Write the files of a state."""

    def fill(path: Path, node: int) -> None:
        path.mkdir()
        for name, inside in folders[node].items():
            if inside in folders:
                fill(path / name, inside)
            else:
                (path / name).write_bytes(contents.get(inside, b""))

    fill(where, ROOT)


def power_cuts(where: Path, count: int, seed: int = 0) -> Tally:
    """Cut the power at `count` random moments of a job, rebuild the store, check and finish it."""
    wanted, tally, rng = reference(where), Tally(), random.Random(seed)
    recorder = Recorder(where / "recorded")
    (where / "recorded").mkdir()
    with hooked(recorder):
        job(where / "recorded" / "store")
    for _ in range(count):
        log = recorder.log[: rng.randrange(len(recorder.log) + 1)]
        _one_cut(where / "cut", log, rng, wanted, tally)
        shutil.rmtree(where / "cut")
    return tally


def _one_cut(
    where: Path, log: list[Operation], rng: random.Random, wanted: dict[str, bytes], tally: Tally
) -> None:
    tally.count += 1
    build(where, *left_after_a_cut(log, rng))
    path, done = where / "store", [o.note for o in log if o.kind == "note"]
    promised = sum(not note.startswith("seal") for note in done)
    tally.notes[f"{promised} committed"] += 1
    if promised > len(commit_record.committed_units(path)):
        tally.silent.append(f"after {len(log)} operations: a committed unit is lost")
        return
    if "seal.sealed" in done:
        problems = [p for p in verify_store(path).problems if not p.startswith("staging:")]
        if problems:
            tally.silent.append(f"after {len(log)} operations, sealed: {problems[0]}")
    try:
        still_readable(path)
        job(path)
    except StoreError as error:
        tally.silent.append(f"after {len(log)} operations: {error}")
        return
    if everything(path) != wanted:
        tally.silent.append(f"after {len(log)} operations: the store differs after a rerun")
