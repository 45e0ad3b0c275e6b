"""Killed at any file operation of a save or of the clean-up after it: a checkpoint is always left.

CASKD_SAVE_KILLS in the environment says how many kills are tried, spread over all moments.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.training import capture, config_for

from caskd.train.checkpoint import (
    CHECKPOINTS,
    checkpoint_path,
    newest_complete,
    prune,
    save_checkpoint,
    unfinished_saves,
    verify,
)
from caskd.train.checkpoint.tensor_files import SavedTensors
from caskd.train.engine import TrainEngine, init_distributed
from caskd.train.run.loop import batch_reader, start_engine, train_step
from caskd.train.run.plan import RunPlan, plan_run

KILLS = int(os.environ.get("CASKD_SAVE_KILLS", "10"))
WATCHED = ("open", "os.", "shutil.")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunPlan, TrainEngine]]:
    """A run after two steps, at stage 0: a forked child must not need the other side of gloo."""
    root = tmp_path_factory.mktemp("kills")
    capture(root)
    plan = plan_run(config_for(root, zero_stage=0))
    with init_distributed() as ranks:
        engine = start_engine(plan, ranks)
        for batch in batch_reader(plan, ranks).steps(0, 2):
            train_step(plan, engine, batch, False)
        yield plan, engine
        engine.close()


def in_child(action: Callable[[], None], kill_at: int | None) -> int:
    """Run `action` in a fork that is killed at its n-th file operation; returns how many it made.

    The fork is not killed where `kill_at` is None.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event.startswith(WATCHED):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            action()
            os.write(sender, str(count).encode())
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(sender)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if kill_at is None else -signal.SIGKILL)
    with os.fdopen(receiver) as file:
        return int(file.read() or 0)


def test_a_kill_at_any_moment_of_a_save(
    trained: tuple[RunPlan, TrainEngine], tmp_path: Path
) -> None:
    plan, engine = trained
    expected = dict(engine.state.weights())

    def save(step: int) -> None:
        state = plan.state_after(step, 0)
        save_checkpoint(checkpoint_path(tmp_path, step), engine, plan.tokenizer, state)

    def save_and_prune(step: int) -> None:
        save(step)
        prune(tmp_path, 1, ())

    save(1)
    num_moments = in_child(lambda: save_and_prune(2), None)
    assert num_moments > 10
    tried = min(KILLS, num_moments)  # with more kills than moments, each comes several times
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000002"]
    newest, seen = 2, set()
    for kill in range(KILLS):
        step = newest + 1
        moment = 1 + kill % tried * (num_moments - 1) // (tried - 1)
        for left in unfinished_saves(tmp_path, newest):  # as a resumed run removes them
            shutil.rmtree(left)
        in_child(lambda step=step: save_and_prune(step), moment)
        checkpoint = newest_complete(tmp_path)
        verify(checkpoint)
        saved = SavedTensors(checkpoint / "weights")
        assert all(torch.equal(saved[name], value) for name, value in expected.items())
        seen.add(checkpoint == checkpoint_path(tmp_path, step))
        newest = int(checkpoint.name[-8:])
    assert seen == {False, True}, "kills fell on one side of the completion only"
    for left in unfinished_saves(tmp_path, newest):
        shutil.rmtree(left)
    save_and_prune(newest + 1)
    assert newest_complete(tmp_path) == checkpoint_path(tmp_path, newest + 1)
