"""Fault points: inert by default, and all reachable."""

import subprocess
import sys

import fault_jobs
import pytest

from caskd.store.errors import UsageError
from caskd.store.io import faults


@pytest.mark.parametrize("text", ["shard.won", "nowhere:1:kill", "shard.won:x:kill", "*:1:explode"])
def test_a_fault_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected point:number:action"):
        faults.Fault(text)


def test_every_point_is_reached_by_a_job_or_by_a_race() -> None:
    with fault_jobs.folder() as where:
        reached = fault_jobs.arrivals(where)
    assert {*faults.POINTS} - {*reached} == {"plan.lost", "shard.lost"}
    assert {*reached} <= {*faults.POINTS}


def test_the_variable_arms_a_fault_and_an_unreached_one_fails() -> None:
    code = (
        "import fault_jobs, sys; from pathlib import Path; from caskd.store.io import faults\n"
        "fault_jobs.job(Path(sys.argv[1])); print(faults.hook.reached)"
    )
    with fault_jobs.folder() as where:

        def run(fault: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", code, str(where / "store")],
                env=fault_jobs.environment(**{faults.VARIABLE: fault}),
                capture_output=True, text=True, check=False,
            )  # fmt: skip

        assert run("shard.staged:3:kill").returncode == -9
        done = run("shard.won:99:kill")
        assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
        unreached = faults.Fault("shard.won:99:kill")
        ended = fault_jobs.run(lambda: fault_jobs.job(where / "other"), unreached)
        assert ended == fault_jobs.NEVER_REACHED
