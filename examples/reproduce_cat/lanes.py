"""Runs jobs in parallel, each once and in order; a new start resumes an interrupted one.

Jobs are command lines of `caskd`. Most take less time than importing torch, so they run in children
forked from a process that has imported it.
"""

import fcntl
import json
import multiprocessing
import os
import runpy
import shutil
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from jobs import HERE, Job

# Slow imports of the commands.
PRELOADED = [
    "tyro",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "torch._inductor.compile_fx",
    "deepspeed.ops.op_builder.all_ops",
    "caskd.precompute.workers.run",
    "caskd.train.engine.deepspeed_engine",
    "caskd.train.run.exporter",
    "caskd.train.run.loop",
    "caskd.models.decoding.greedy",
    "caskd.eval.inference.predictor",
]


def run_job(job: Job) -> None:
    """Run a job in this process, append its output to its log, and exit with its exit code."""
    with open(log_of(job), "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # A killed driver may have left this job running.
    fcntl.flock(1, fcntl.LOCK_EX)
    if job.makes.exists():
        return
    words = command_of(job)
    print("$", *(() if job.script else ("caskd",)), *words, flush=True)
    if job.script:
        sys.argv = [*words]
        sys.path.insert(0, str(HERE))
        runpy.run_path(str(HERE / words[0]), run_name="__main__")
        return
    from caskd.cli.main import main

    sys.exit(main(words))


def log_of(job: Job) -> Path:
    """Path of a job's log."""
    return Path("logs", str(job.makes).replace("/", "--") + ".log")


def command_of(job: Job) -> tuple[str, ...]:
    """The command line to run now: an interrupted training resumes from its newest checkpoint."""
    if job.resumes is None or not job.resumes.exists():
        return job.words
    if any(job.resumes.glob("checkpoints/*/COMPLETE")):
        return (*job.words, "--resume")
    shutil.rmtree(job.resumes)  # interrupted before its first checkpoint
    return job.words


class Lanes:
    """Runs jobs in parallel in the current folder; writes `logs/` and `seconds.jsonl` there.

    Args:
        num_lanes: jobs at a time.
        num_threads: threads of each job.
    """

    def __init__(self, num_lanes: int, num_threads: int) -> None:
        self._num_lanes = num_lanes
        Path("logs").mkdir(exist_ok=True)
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._running: dict[BaseProcess, tuple[Job, float]] = {}

    def run(self, jobs: Sequence[Job], until: float | None = None) -> list[Job]:
        """Run every job that is not done, as soon as its inputs exist.

        Args:
            jobs: by priority.
            until: time.time() after which no job starts.

        Returns:
            The failed jobs; the jobs that depend on them did not start.
        """
        waiting = [job for job in jobs if not job.makes.exists()]
        failed: list[Job] = []
        while self._running or waiting:
            late = until is not None and time.time() > until
            ready = [job for job in waiting if all(need.exists() for need in job.needs)]
            while ready and not late and len(self._running) < self._num_lanes:
                waiting.remove(job := ready.pop(0))
                self._start(job)
            if not self._running:
                break
            failed += self._finished()
            time.sleep(0.1)
        return failed

    def _start(self, job: Job) -> None:
        (job.resumes or job.makes).parent.mkdir(parents=True, exist_ok=True)
        print(f"{time.strftime('%H:%M:%S')} {job.makes}", flush=True)
        process = self._context.Process(target=run_job, args=(job,))
        process.start()
        self._running[process] = job, time.monotonic()

    def _finished(self) -> list[Job]:
        failed = []
        for process in [p for p in self._running if p.exitcode is not None]:
            job, started = self._running.pop(process)
            if process.exitcode or not job.makes.exists():
                print(f"failed with exit code {process.exitcode}; see {log_of(job)}", flush=True)
                failed.append(job)
                continue
            record = {
                "job": str(job.makes),
                "seconds": round(time.monotonic() - started, 2),
            }
            with open("seconds.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        return failed
