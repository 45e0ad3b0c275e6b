"""A capture as it is seen from outside: what its workers have committed, and what failed.

From the commit records alone, so that any machine that sees the store can look on; no worker is
asked, and none need be alive.
"""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from caskd.store.commits import all_units, commit_record
from caskd.store.errors import StoreError
from caskd.store.format import ENVIRONMENT, StoreSpec, untrusted_json
from caskd.store.io import clean, files, progress
from caskd.store.read import TeacherStore

MAX_ATTEMPTS_READ = 10_000


class JobView:
    """What is committed of a store; each look reads only what is new."""

    def __init__(self, root: Path, spec: StoreSpec) -> None:
        self.root, self.spec = root, spec
        self.num_rows = 0
        self.statuses: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        """Bytes by array."""
        self._left = set(all_units(spec))

    @property
    def shards_left(self) -> list[int]:
        """Shards that are not committed."""
        return sorted(int(unit) for unit in self._left if unit.isdecimal())

    @property
    def num_committed_shards(self) -> int:
        """Shards that are."""
        return self.spec.num_shards - len(self.shards_left)

    def look(self) -> int:
        """Read the records that came since the last look; returns the rows they add."""
        before = self.num_rows
        for unit in self._left & commit_record.committed_units(self.root):
            record = commit_record.read_record(self.root, unit)
            self.num_rows += int(record.facts["num_rows"])
            self.statuses.update(record.facts["statuses"])
            self.sizes.update(record.bytes_by_array())
            self._left.remove(unit)
        return self.num_rows - before

    def failed_shards(self) -> list[int]:
        """Shards that some attempt gave up and nobody has committed."""
        given_up = _given_up(self.root)
        return [shard for shard in self.shards_left if str(shard) in given_up]


def _given_up(root: Path) -> set[str]:
    """Shards that the records of attempts name as failed."""
    folder, shards = root / ENVIRONMENT, set[str]()
    if not folder.is_dir() or folder.is_symlink():
        return shards
    for path in sorted(folder.glob("*.json"))[:MAX_ATTEMPTS_READ]:
        name = f"{ENVIRONMENT}/{path.name}"
        try:
            facts = untrusted_json.parse_json(files.read_small(root, name), name)
        except StoreError:
            continue  # outside the seal: what is not readable there says nothing
        failed = facts.get("failed_shards") if isinstance(facts, dict) else None
        shards.update(failed if isinstance(failed, dict) else ())
    return shards


def shards_text(shards: list[int]) -> str:
    """A few shard numbers, and how many more there are."""
    more = f" and {len(shards) - 8:,} more" if len(shards) > 8 else ""
    return ", ".join(map(str, shards[:8])) + more


SECONDS_BETWEEN_LOOKS = 2.0


def watch(store: TeacherStore, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show the progress of a capture until its store is sealed."""
    view = JobView(store.root, store.spec)
    view.look()
    if store.sealed:
        return
    print(f"{clean(store.name)}: {view.num_rows:,} rows committed, {watch_note(view)}")
    with progress("capture", store.spec.num_rows, "rows", done=view.num_rows) as bar:
        while not store.sealed:
            sleep(SECONDS_BETWEEN_LOOKS)
            bar.advance(view.look(), watch_note(view))


def watch_note(view: JobView) -> str:
    """What stands beside the bar."""
    parts = [f"{view.num_committed_shards:,} of {view.spec.num_shards:,} shards"]
    if not view.shards_left:
        parts.append("being sealed")
    rest = {status: n for status, n in sorted(view.statuses.items()) if n and status != "ok"}
    parts += [f"{n:,} {clean(status)}" for status, n in rest.items()]
    failed = view.failed_shards()
    if failed:
        parts.append(f"failed: {shards_text(failed)}")
    return ", ".join(parts)
