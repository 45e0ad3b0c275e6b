"""Description of the machine for tables of results."""

import platform
from pathlib import Path


def hardware() -> str:
    """Name of the processor, as far as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
