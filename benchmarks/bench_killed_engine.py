"""What a killed server, and a killed engine, cost a capture in time and in rows asked again.

    python benchmarks/bench_killed_engine.py MODEL --data FILE --work FOLDER

Needs vllm (see docs/large-teachers.md). One corpus is captured from vLLM's OpenAI-compatible server
and by an engine of the capture, each once undisturbed and once with kill -9 of the server or of
EngineCore behind the first commits; the server is started again, and the same command is run until
the store is complete. Writes benchmarks/results/killed_server.csv
and killed_engine.csv.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from store_rows import setting, write_table

from caskd.models import open_config, open_tokenizer
from caskd.models.engines import VllmEngine, fixed_prompts, key_of, vllm_version
from caskd.models.engines.http_client import HttpServer
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import TeacherStore, verify_store
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.errors import CaskdError
from caskd.store.io import tell


class Server:
    """vLLM's server on a fixed port, which can be killed and started again."""

    def __init__(self, model: str, k: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        words = [
            "--model",
            model,
            "--dtype",
            "float32",
            "--enforce-eager",
            "--port",
            str(self.port),
        ]
        words += ["--host", "127.0.0.1", "--no-enable-prefix-caching", "--max-model-len", "256"]
        self.words = [*words, "--max-logprobs", str(k)]
        self.start_seconds: list[float] = []
        self.ready = threading.Event()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        began = time.monotonic()
        program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *self.words]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(program, start_new_session=True, **quiet)
        while self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    break
            time.sleep(0.5)
        self.start_seconds.append(time.monotonic() - began)
        self.ready.set()

    def kill(self) -> None:
        """End it and its engine at once."""
        self.ready.clear()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_and_start(self) -> None:
        """End it, and start it again without waiting."""
        self.kill()
        threading.Thread(target=self.start, daemon=True).start()


class Counted:
    """Rows that the teacher computed, and an action behind the first commits.

    A row is a token of a prompt or a response with its log-probabilities. A store holds those of
    responses alone. Rows of the fingerprint and of the test of an engine have prompts of their own,
    and count as checks, too.
    """

    def __init__(self, store: Path, options: Any, action: Callable[[], None] | None) -> None:
        self.rows, self.checks = 0, 0
        self.store, self.after, self.action = store, options.after, action
        self._fixed = fixed_beginnings(options.model)
        self._lock = threading.Lock()

    def ask(self, tokens: Sequence[int], num_rows: int) -> None:
        """Count an answer; the first one behind enough commits meets the action."""
        with self._lock:
            self.rows += num_rows
            self.checks += num_rows * (tuple(tokens[:8]) in self._fixed)
            commits = list((self.store / "commits").glob("[0-9]*.json"))
            if self.action is not None and len(commits) >= self.after:
                action, self.action = self.action, None
                action()


def fixed_beginnings(model: str) -> set[tuple[int, ...]]:
    """The first eight ids of each prompt of the fingerprint."""
    vocab = token_bytes(open_tokenizer(Path(model), "MODEL"))
    num_ids = min(len(vocab), open_config(Path(model), "MODEL").get_text_config().vocab_size)
    prompts = fixed_prompts(num_ids, key_of(vocab_digest(vocab)))
    return {tuple(prompt[:8]) for prompt in prompts}


def captured(
    config: PrecomputeConfig, ready: Callable[[], None], counted: Counted
) -> dict[str, Any]:
    """Run the command until the store is complete."""
    began, commands = time.monotonic(), 0
    while True:
        commands += 1
        try:
            store = precompute(config)
        except CaskdError as error:
            tell(f"exit {error.exit_code}: {error}")
            ready()
            if commands == 5:
                raise
        else:
            assert isinstance(store, TeacherStore)
            assert verify_store(store.root, full=True).ok
            return {
                "num_rows": len(store.read(range(len(store))).labels),
                "num_shards": store.spec.num_shards,
                "rows_asked": counted.rows,
                "rows_of_checks": counted.checks,
                "commands": commands,
                "seconds": round(time.monotonic() - began, 1),
            }


def server_arms(options: Any, base: dict[str, Any]) -> list[dict[str, Any]]:
    """A server that lives, and one that is killed."""
    server, real, lines = Server(options.model, options.k), HttpServer._send, []
    server.start()
    try:
        for arm, action in (("alive", None), ("killed", server.kill_and_start)):
            store = options.work / f"server-{arm}"
            counted = Counted(store, options, action)

            def send(http: Any, path: str, body: Any, counted: Counted = counted) -> Any:
                answer = real(http, path, body)
                if isinstance(body, dict) and "prompt_logprobs" in body and answer[0] == 200:
                    counted.ask(body["prompt"], len(body["prompt"]) - 1)
                return answer

            HttpServer._send = send  # type: ignore[method-assign]
            config = PrecomputeConfig(store=str(store), backend="server", url=(server.url,), **base)
            found = captured(config, lambda: server.ready.wait() and None, counted)
            starts = server.start_seconds[1:] if action else []
            line = {"arm": f"server, {arm}", **found, "start_seconds": round(sum(starts), 1)}
            tell(str(line))
            lines.append(line)
    finally:
        HttpServer._send = real  # type: ignore[method-assign]
        server.kill()
    return lines


def engine_arms(options: Any, base: dict[str, Any]) -> list[dict[str, Any]]:
    """An engine that lives, and one that is killed."""
    real_run, real_init, lines = VllmEngine.run, VllmEngine.__init__, []
    starts: list[float] = []
    engines: list[VllmEngine] = []

    def init(engine: VllmEngine, options: Any) -> None:
        began = time.monotonic()
        real_init(engine, options)
        starts.append(time.monotonic() - began)
        engines.append(engine)

    def kill() -> None:
        for process in engines[-1]._processes:
            os.kill(process.pid, signal.SIGKILL)

    VllmEngine.__init__ = init  # type: ignore[method-assign]
    try:
        for arm, action in (("alive", None), ("killed", kill)):
            store = options.work / f"engine-{arm}"
            counted = Counted(store, options, action)

            def run(engine: Any, prompts: Any, counted: Counted = counted, **further: Any) -> Any:
                for prompt in prompts:  # without its last label
                    counted.ask(prompt, len(prompt))
                return real_run(engine, prompts, **further)

            VllmEngine.run = run  # type: ignore[method-assign]
            starts.clear()
            config = PrecomputeConfig(store=str(store), backend="vllm", dtype="float32", **base)
            found = captured(config, lambda: None, counted)
            line = {"arm": f"engine, {arm}", **found, "start_seconds": round(sum(starts[1:]), 1)}
            tell(str(line))
            lines.append(line)
    finally:
        VllmEngine.run, VllmEngine.__init__ = real_run, real_init  # type: ignore[method-assign]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--shard-rows", type=int, default=512)
    parser.add_argument("--after", type=int, default=2, help="commits before the kill")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--notes", default="")
    options = parser.parse_args()
    base: dict[str, Any] = {
        "teacher": options.model,
        "data": (options.data,),
        "top_k": options.k,
        "shard_rows": options.shard_rows,
        "token_budget": 512,
        "max_length": 200,
        "on_long": "truncate",
        "tokenize_processes": 1,
    }
    facts = {"model": Path(options.model).name, "k": options.k, "vllm": vllm_version()}
    facts |= {name: version(name) for name in ("torch", "transformers")}
    for kind in options.kinds:
        alive, killed = KINDS[kind](options, base)
        killed["rows_asked_again"] = killed["rows_asked"] - alive["rows_asked"]
        killed["extra_seconds"] = round(killed["seconds"] - alive["seconds"], 1)
        write_table(f"killed_{kind}", [alive, killed], facts | setting(options.notes))


KINDS = {"server": server_arms, "engine": engine_arms}


if __name__ == "__main__":
    main()
