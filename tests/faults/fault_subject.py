"""The subject: a process that opens hostile stores under watch, with limits on memory and time.

As a program it reads folders, one a line, and prints one line of JSON for each. Each store is used
in a fork of this process, so that all imports are done before the watch begins.
"""

import json
import os
import resource
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from caskd.cli.store_commands import info_text, store_info
from caskd.store.errors import CaskdError
from caskd.store.inspect import example_json, example_view
from caskd.store.read import TeacherStore
from caskd.store.verify import repair_store, verify_store

CPU_SECONDS, WALL_SECONDS = 10, 60
EXTRA_BYTES = 2 << 30
FORBIDDEN = ("exec", "import", "compile", "socket.", "subprocess.", "os.system", "os.exec",
             "os.posix_spawn", "os.fork", "ctypes.", "pickle.", "marshal.")  # fmt: skip


def use(path: Path) -> tuple[list[str], list[str]]:
    """Use a store in every way that a user does; returns refusals and other failures."""
    refusals: list[str] = []
    failures: list[str] = []

    def attempt(action: Any) -> None:
        try:
            action()
        except CaskdError as error:
            refusals.append(str(error))
            if "\n" in str(error) or len(str(error)) > 1000 or "\x1b" in str(error):
                failures.append(f"not one plain line: {str(error)[:100]!r}")
        except BaseException:
            failures.append(traceback.format_exc())

    def read() -> None:
        store = TeacherStore.open(path, allow_unsealed=True)
        store.read(range(min(len(store), 64)))
        store.read([len(store) - 1])

    def show() -> None:
        from rich.console import Console

        store = TeacherStore.open(path, allow_unsealed=True)
        json.dumps(example_json(store, 0))
        Console(file=open(os.devnull, "w"), width=100).print(example_view(store, 0))  # noqa: SIM115

    def verify() -> None:
        for full in (False, True):
            refusals.extend(verify_store(path, full=full).problems)

    attempt(lambda: info_text(store_info(path)))
    attempt(lambda: json.dumps(store_info(path)))
    attempt(lambda: TeacherStore.open(path).digest)
    attempt(read)
    attempt(show)
    attempt(lambda: TeacherStore.open(path, allow_unsealed=True).vocab)
    attempt(verify)
    return refusals, failures


def watched(path: Path) -> dict[str, Any]:
    """Use a store and record every file, import and command of this process meanwhile."""
    root, events, watching = str(path.resolve()), [], True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event.startswith(FORBIDDEN):
            events.append(f"{event} {arguments}"[:200])
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | Path):
            real = os.path.realpath(arguments[0])
            if not (real + "/").startswith(root + "/") and real != os.devnull:
                events.append(f"{event} {real}")

    limit = _status("VmSize") + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu = _status("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    sys.addaudithook(watch)
    refusals, failures = use(path)
    watching = False
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "refusals": refusals[:3],
        "failures": failures[:3],
        "events": events[:3],
        "bytes": _status("VmHWM") - before,
        "seconds": used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime,
    }


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def in_child(path: Path) -> dict[str, Any]:
    """Run `watched` in a fork; a hang or a crash is a result too."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            os.write(writer, json.dumps(watched(path)).encode()[:60000])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], WALL_SECONDS)
    if not ready:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answer = os.read(reader, 1 << 16) if ready else b""
    os.close(reader)
    if not answer:
        return {"refusals": [], "failures": [f"hung or died ({status})"], "events": [],
                "bytes": 0, "seconds": 0.0}  # fmt: skip
    return dict(json.loads(answer))


def main() -> None:
    """Warm up on a valid store, then handle the folders from stdin."""
    sound = Path(sys.argv[1])
    for _ in range(2):
        refusals, failures = use(sound)
        assert not refusals, refusals
        assert not failures, failures
    cell_len("\u4e00")  # rich loads its tables of widths when it first needs them
    repair_store(sound)
    for line in sys.stdin:
        print(json.dumps(in_child(Path(line.rstrip("\n")))), flush=True)


if __name__ == "__main__":
    main()
