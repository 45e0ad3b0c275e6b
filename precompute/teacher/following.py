"""A rank behind rank 0: it loads its part of the teacher and computes every batch along."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.teacher.factory import find_teacher
from caskd.precompute.teacher.rank_group import END, PLAN, RankGroup, unpacked
from caskd.store.errors import CaskdError, IdentityError
from caskd.store.format import StoreSpec, identity_differences
from caskd.store.write import ShardExample

Compute = Callable[[Sequence[ShardExample]], Any]


def follow(config: PrecomputeConfig, group: RankGroup) -> None:
    """Compute every batch that rank 0 names, until it dismisses this rank.

    It reads neither the corpus nor the store, and does not look for the teacher before rank 0 has
    found everything in order.

    Raises:
        LostTeacherError: another rank ended, or this one failed.
        UsageError: the teacher does not load here.
        IdentityError: this machine has another teacher than rank 0's.
    """
    compute: Compute | None = None
    with _signals_left_to_rank_0():
        while True:
            kind, payload = group.receive()
            if kind == END:
                return
            group.in_step = True
            try:
                if kind == PLAN:
                    spec = StoreSpec.from_json(payload, "the plan of rank 0")
                    compute = _load(config, group, spec)
                elif compute is not None:
                    compute(unpacked(payload))
            except CaskdError:
                raise
            except Exception as error:
                raise group.lost(error) from error
            group.in_step = False


def _load(config: PrecomputeConfig, group: RankGroup, spec: StoreSpec) -> Compute:
    """Load this rank's part of the teacher.

    Raises:
        UsageError: it does not load.
        IdentityError: the first rank of this machine found other files than rank 0.
    """
    source = find_teacher(config)
    if group.local_rank == 0:
        differing = list(identity_differences(spec.identity["teacher"], source.identity()))
        for field, theirs, ours in differing[:1]:
            raise IdentityError(
                f"--teacher {source.name}: rank {group.rank} has another teacher than rank 0; "
                f"teacher.{field} is {theirs} there, but {ours} here; expected equal files on all "
                "machines; copy them from rank 0's machine"
            )
    return source.load(spec).rows


@contextmanager
def _signals_left_to_rank_0() -> Iterator[None]:
    """Ctrl-C reaches all ranks, and the others end when rank 0 does.

    SIGTERM ends them at once and without a line, which rank 0 prints.
    """
    wanted = {
        signal.SIGINT: signal.SIG_IGN,
        signal.SIGHUP: signal.SIG_IGN,
        signal.SIGTERM: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, action) for number, action in wanted.items()}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
