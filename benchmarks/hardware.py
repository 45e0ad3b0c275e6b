"""What a table of results says of the machine."""

import platform
from pathlib import Path


def hardware() -> str:
    """The processor's name, as far as this system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
