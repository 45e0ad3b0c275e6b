"""Which kernels the time of a call goes to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SHOWN = 40


def add_profile(file: Path, title: str, call: Callable[[], Any]) -> None:
    """Append a table of what the device did in a call; nothing where there is no GPU."""
    if not torch.cuda.is_available():
        return
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    table = seen.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=SHOWN, max_name_column_width=80
    )
    with file.open("a") as out:
        out.write(f"===== {title}\n{table}\n")
