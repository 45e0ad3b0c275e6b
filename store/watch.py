"""`caskd store info --watch`: the progress of a capture, whoever runs it and wherever."""

import time
from collections.abc import Callable

from caskd.store.info import clean
from caskd.store.job_view import JobView, shards_text
from caskd.store.progress import progress
from caskd.store.reader import TeacherStore

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
