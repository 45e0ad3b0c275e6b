"""`caskd doctor`: what is installed, which device there is, what would fail, and the fix."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version

Verdict = Literal["ok", "note", "broken"]

_EXTRAS = {
    "lora": "--lora-rank",
    "ray": "--executor ray",
    "routers": "learned deferral rules",
    "s3": "s3:// and gs://",
    "tensorboard": "--tensorboard",
    "wandb": "--wandb",
}
"""What each extra is for; all others are for people who work on caskd itself."""


@dataclass(frozen=True)
class DoctorConfig:
    """Look at this machine; exit 1 if something that is needed is broken."""

    json: bool = False
    """Print one JSON array instead of a table."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        verdict: `note` is worth knowing and stops nothing.
        found: what is there.
        fix: what to type, where there is something to mend.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def doctor(config: DoctorConfig) -> int:
    """Print what was found; returns 1 if something that is needed is broken."""
    findings = [*check_packages(), *check_device(), *check_compilers(), *check_host()]
    if config.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print("\n".join(_lines(findings)))
    return int(any(finding.verdict == "broken" for finding in findings))


def _lines(findings: list[Finding]) -> Iterator[str]:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        fix = f"  -> {finding.fix}" if finding.fix else ""
        yield f"{finding.verdict:6}  {finding.name.ljust(width)}  {finding.found}{fix}"
    broken = [finding.name for finding in findings if finding.verdict == "broken"]
    yield f"{len(broken)} broken: {', '.join(broken)}" if broken else "nothing is broken"


def check_packages() -> Iterator[Finding]:
    """Every dependency against the floor that caskd itself declares."""
    for text in metadata.requires("caskd") or []:
        requirement = Requirement(text)
        extra = next((e for e in _EXTRAS if _needed_by(requirement, e)), None)
        if extra is not None or _needed_by(requirement, ""):
            yield check_package(requirement, extra)


def _needed_by(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if marker is None:
        return not extra
    return marker.evaluate({"extra": extra}) and bool(extra) == ("extra" in str(marker))


def check_package(requirement: Requirement, extra: str | None) -> Finding:
    """One package; an extra that is missing is a note that says what it is for."""
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        if extra is not None:
            install = f"pip install 'caskd[{extra}]'"
            return Finding(requirement.name, "note", f"not there; {_EXTRAS[extra]} only", install)
        return Finding(requirement.name, "broken", "not installed", f"pip install '{wanted}'")
    if Version(version) not in requirement.specifier:
        found = f"{version}, expected {requirement.specifier}"
        return Finding(requirement.name, "broken", found, f"pip install -U '{wanted}'")
    return Finding(requirement.name, "ok", version)


def check_device() -> Iterator[Finding]:
    """What torch computes on, and a GPU that it does not see."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("device", "broken", f"torch cannot be imported ({error})", "install it anew")
        return
    if not torch.cuda.is_available():
        yield _without_cuda(torch)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA"
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        fix = "" if bf16 else "no bfloat16: add --dtype float32"
        verdict: Verdict = "ok" if bf16 else "note"
        yield Finding(f"device {index}", verdict, f"{found} {torch.version.cuda}", fix)
    if not torch.distributed.is_nccl_available():
        yield Finding("nccl", "broken", "not in this torch", "install torch for Linux with CUDA")


def _without_cuda(torch: Any) -> Finding:
    if shutil.which("nvidia-smi") and _runs("nvidia-smi", "-L"):
        found = f"a GPU is there, but torch {torch.__version__} does not see it"
        fix = "install torch for this driver: https://pytorch.org/get-started/locally"
        return Finding("device", "broken", found, fix)
    return Finding("device", "ok", f"cpu, {torch.get_num_threads()} threads, no GPU found")


def _runs(*command: str) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def check_compilers() -> Iterator[Finding]:
    """What DeepSpeed would compile: nothing by our own settings, its own optimizers by yours."""
    compiler, ninja = shutil.which("c++") or shutil.which("g++"), shutil.which("ninja")
    here = ", ".join(name for name, path in (("c++", compiler), ("ninja", ninja)) if path) or "none"
    yield Finding(
        "deepspeed operators",
        "ok",
        f"none is compiled by caskd's settings; a --deepspeed-config that asks for some "
        f"(cpu_adam, async_io) needs c++ and ninja, here: {here}",
    )


def check_host() -> Iterator[Finding]:
    """Memory, disk, and whether ranks on this machine find each other."""
    pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("host", "ok", f"{cores} cores, {pages * page_size / 2**30:.0f} GiB of memory")
    free = shutil.disk_usage(".").free / 2**30
    fix = "free some: a checkpoint takes 12 bytes a parameter" if free < 5 else ""
    yield Finding("disk here", "note" if fix else "ok", f"{free:.0f} GiB free", fix)
    name = socket.gethostname()
    try:
        socket.gethostbyname(name)
    except OSError:
        fix = "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        yield Finding("host name", "note", "does not resolve, which several ranks need", fix)
    else:
        yield Finding("host name", "ok", "resolves")
