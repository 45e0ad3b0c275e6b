"""A small capture as a job that tests kill, fail, race and repeat, and its expected result."""

import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from helpers import stores
from helpers.compact_stores import OldWriter

from caskd.store.errors import CaskdError, IdentityError
from caskd.store.format import DEFAULT_ENCODING
from caskd.store.io import faults
from caskd.store.write import ShardWork, plan_store

OTHER_IDENTITY, NEVER_REACHED, REFUSED, BROKEN = 96, 97, 98, 99
SHARD_ROWS = 32


@dataclass
class Tally:
    """The number of cases, and one line for each that went wrong."""

    count: int = 0
    silent: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder, in memory if possible: syncs to a disk would dominate the time."""
    memory = Path("/dev/shm")
    where = tempfile.mkdtemp(prefix="caskd-", dir=memory if memory.is_dir() else None)
    try:
        yield Path(where)
    finally:
        shutil.rmtree(where)


def environment(**more: str) -> dict[str, str]:
    """Environment of a program that imports the modules of this folder."""
    here, inherited = Path(__file__).parent, os.environ.get("PYTHONPATH")
    paths = [str(here), str(here.parent), *([inherited] if inherited else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def plan(path: Path, encoding: str = DEFAULT_ENCODING, top_k: int = 4) -> None:
    """Plan the small store that all fault tests use."""
    plan_store(
        path,
        stores.identity(top_k, encoding),
        stores.examples(),
        shard_rows=SHARD_ROWS,
        vocab=stores.VOCAB,
    )


def job(path: Path) -> None:
    """Do the work of `caskd precompute`: plan, fill the missing shards, seal."""
    plan(path)
    writer = stores.fill(path)
    writer.record_environment({"attempt": 1})
    writer.seal()


def everything(path: Path) -> dict[str, bytes]:
    """Every file, by name, and every folder, by name with a slash."""
    return {
        file.relative_to(path).as_posix() + ("/" if file.is_dir() else ""): (
            b"" if file.is_dir() else file.read_bytes()
        )
        for file in path.rglob("*")
    }


def reference(where: Path) -> dict[str, bytes]:
    """All files after an uninterrupted job."""
    job(where / "reference")
    return everything(where / "reference")


def arrivals(where: Path) -> Counter[str]:
    """How often each fault point is reached by an uninterrupted job."""
    counter: Counter[str] = Counter()
    with hooked(lambda name, *_paths: counter.update([name])):
        job(where / "arrivals")
    shutil.rmtree(where / "arrivals")
    return counter


@contextmanager
def hooked(hook: faults.Hook | None) -> Iterator[None]:
    """Call `hook` at every fault point."""
    before, faults.hook = faults.hook, hook
    try:
        yield
    finally:
        faults.hook = before


def start(task: Callable[[], object], hook: faults.Hook | None = None) -> int:
    """Run `task` in a forked child; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = BROKEN
    try:
        faults.hook = hook
        task()
        unreached = isinstance(hook, faults.Fault) and not hook.reached
        code = NEVER_REACHED if unreached else 0
    except IdentityError:
        code = OTHER_IDENTITY
    except CaskdError as error:
        code = REFUSED
        print(error, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def outcome(child: int) -> int:
    """Wait for a child; returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(task: Callable[[], object], hook: faults.Hook | None = None) -> int:
    """Run `task` in a child to its end."""
    return outcome(start(task, hook))


def stopped(child: int) -> bool:
    """Wait until a child stops (returns True) or ends (False)."""
    return os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])


def go_on(child: int) -> None:
    """Continue a stopped child."""
    os.kill(child, signal.SIGCONT)


def work(
    path: Path, rng: random.Random, noise: float = 0.0, encoding: str = DEFAULT_ENCODING
) -> None:
    """One of several workers: plan, fill shards in random sequence, seal when all are committed."""
    plan(path, encoding)
    writer = OldWriter(path)
    pilot = writer.pilot()
    if pilot is not None:
        writer.commit_pilot(stores.shard_rows_of(pilot, pilot.num_rows, writer.spec.top_k))
    missing = writer.missing_shards()
    rng.shuffle(missing)
    for shard in missing:
        work = writer.shard(shard)
        writer.commit(work, noisy_rows(work, noise))
    assert writer.missing_shards() == []
    writer.seal()


def noisy_rows(work: ShardWork, noise: float) -> dict[str, np.ndarray]:
    """Rows of a shard; `noise` is added to the teacher's logits."""
    rows = stores.shard_rows_of(work, SHARD_ROWS, 4)
    for name in ("logsumexp", "label_logit", "topk_logits"):
        rows[name] = rows[name] + np.float32(noise)
    return rows
