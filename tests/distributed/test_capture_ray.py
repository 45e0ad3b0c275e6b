"""Captures on a Ray cluster of this machine: lost workers are replaced, poison shards set aside."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.captures import config_for, sealed_files
from helpers.tiny import ragged_records, save_tiny

from caskd.precompute import precompute
from caskd.precompute.workers import ray_cluster, ray_executor
from caskd.store.errors import FailedShardsError, UsageError
from caskd.store.inspect import store_info

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

POISON = 2


class FragileActor(ray_executor.CaptureActor):
    """Dies for real: once in the middle of shard 1, and whenever it meets the poison."""

    def fill(self, shard):
        once = Path(self.config.store).parent / "died"
        real = self.worker.teacher.rows

        def rows(examples):
            answer = real(examples)
            if shard == 1 and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        if shard == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        self.worker.teacher.rows = rows
        return super().fill(shard)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    here, tests = Path(__file__).parent, Path(__file__).parents[1]
    paths = [str(here), str(tests), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written to the home folder
        patched.setenv("PYTHONPATH", os.pathsep.join(paths))
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            _temp_dir=str(tmp_path_factory.mktemp("ray")),
        )  # fmt: skip
        yield ray
        ray.shutdown()


def test_lost_workers_are_replaced_and_a_poison_shard_is_set_aside(
    cluster, tmp_path, monkeypatch, capsys
):
    teacher, records = save_tiny(tmp_path / "big"), ragged_records(24, seed=3)
    (tmp_path / "whole").mkdir()
    whole = config_for(teacher, tmp_path / "whole", records, deterministic=True)
    precompute(whole)
    config = config_for(
        teacher, tmp_path, records, deterministic=True, executor="ray", num_workers=2
    )
    monkeypatch.setattr(ray_executor, "CaptureActor", FragileActor)
    with pytest.raises(
        FailedShardsError, match=r"failed: 2 \(shard 2: its worker was lost.*3 times"
    ):
        precompute(config)
    assert (tmp_path / "died").exists()
    said = capsys.readouterr().err
    assert "shard 1 failed, attempt 1 of 3" in said
    assert "shard 2 failed, attempt 3 of 3" in said
    info = store_info(config.store)
    assert info["failed_shards"] == [POISON]
    assert info["num_committed_shards"] == info["num_shards"] - 1
    assert precompute(replace(config, executor="local", num_workers=1)).sealed
    assert sealed_files(config.store) == sealed_files(whole.store)


def test_actors_ask_for_a_gpu_each_or_share_the_cores(tmp_path):
    config = config_for(tmp_path, tmp_path, [], device="auto", executor="ray", num_workers=4)
    options, advice = ray_cluster.actor_options({"GPU": 8.0, "CPU": 64.0}, config)
    assert (options["num_gpus"], advice) == (1, "")
    assert "of which the cluster has 2" in ray_cluster.actor_options({"GPU": 2.0}, config)[1]
    assert ray_cluster.actor_options({"CPU": 9.0}, config)[0]["num_cpus"] == 2
    assert ray_cluster.actor_options({"CPU": 2.0}, config)[0]["num_cpus"] == 0.5


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    config = config_for(tmp_path / "no", tmp_path, [], executor="ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'caskd\[ray\]'"):
        precompute(config)
