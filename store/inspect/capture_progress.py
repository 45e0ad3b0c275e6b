"""Progress of a capture: committed rows and failed shards, read from the store's records.

Any machine that can read the store can watch it: nothing contacts a worker, and none needs to run.
"""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from caskd.store.commits import all_units, commit_record
from caskd.store.errors import StoreError, UnreadableError
from caskd.store.format import ENVIRONMENT, StoreSpec, untrusted_json
from caskd.store.io import counted, escape_control, files, progress, tell
from caskd.store.read import TeacherStore

MAX_ATTEMPTS_READ = 10_000
SECONDS_BETWEEN_REFRESHES = 2.0


class CaptureStatus:
    """Committed rows, statuses and bytes of a store; each `refresh` reads only new records."""

    def __init__(self, root: Path, spec: StoreSpec) -> None:
        self.root, self.spec = root, spec
        self.num_rows = 0
        self.statuses: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        """Bytes per array."""
        self._left = set(all_units(spec))

    @property
    def shards_left(self) -> list[int]:
        """Numbers of the shards that are not committed, ascending."""
        return sorted(int(unit) for unit in self._left if unit.isdecimal())

    @property
    def num_committed_shards(self) -> int:
        """Number of committed shards."""
        return self.spec.num_shards - len(self.shards_left)

    def refresh(self) -> int:
        """Read the records committed since the last refresh; returns the number of new rows."""
        before = self.num_rows
        for unit in self._left & commit_record.committed_units(self.root):
            record = commit_record.read_record(self.root, unit)
            self.num_rows += int(record.facts["num_rows"])
            self.statuses.update(record.facts["statuses"])
            self.sizes.update(record.bytes_by_array())
            self._left.remove(unit)
        return self.num_rows - before

    def failed_shards(self) -> list[int]:
        """Uncommitted shards that some attempt recorded as failed."""
        recorded = _recorded_failures(self.root)
        return [shard for shard in self.shards_left if str(shard) in recorded]


def _recorded_failures(root: Path) -> set[str]:
    """Shards that the attempt records under environment/ list as failed."""
    shards = set[str]()
    try:
        names = [name for name in files.entries(root / ENVIRONMENT) if name.endswith(".json")]
    except UnreadableError:
        return shards
    for name in (f"{ENVIRONMENT}/{entry}" for entry in names[:MAX_ATTEMPTS_READ]):
        try:
            facts = untrusted_json.parse_json(files.read_small(root, name), name)
        except StoreError:
            continue  # environment/ is outside the seal; an unreadable record is no damage
        failed = facts.get("failed_shards") if isinstance(facts, dict) else None
        shards.update(failed if isinstance(failed, dict) else ())
    return shards


def shards_text(shards: list[int]) -> str:
    """Up to 8 shard numbers, and the count of the rest."""
    more = f" and {len(shards) - 8:,} more" if len(shards) > 8 else ""
    return ", ".join(map(str, shards[:8])) + more


def watch(store: TeacherStore, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a capture's progress until its store is sealed."""
    status = CaptureStatus(store.root, store.spec)
    status.refresh()
    if store.sealed:
        return
    tell(
        f"{escape_control(store.name)}: {status.num_rows:,} rows committed, {progress_note(status)}"
    )
    with progress("capture", store.spec.num_rows, "rows", done=status.num_rows) as bar:
        while not store.sealed:
            sleep(SECONDS_BETWEEN_REFRESHES)
            bar.advance(status.refresh(), progress_note(status))


def progress_note(status: CaptureStatus) -> str:
    """Text beside the progress bar: shards, statuses other than ok, failed shards."""
    parts = [f"{status.num_committed_shards:,} of {counted(status.spec.num_shards, 'shard')}"]
    if not status.shards_left:
        parts.append("sealing")
    others = {name: n for name, n in sorted(status.statuses.items()) if n and name != "ok"}
    parts += [f"{n:,} {escape_control(name)}" for name, n in others.items()]
    failed = status.failed_shards()
    if failed:
        parts.append(f"failed: {shards_text(failed)}")
    return ", ".join(parts)
