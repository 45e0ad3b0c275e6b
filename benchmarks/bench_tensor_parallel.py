"""Logits of models divided over two ranks against one process, for every type with a plan.

    torchrun --nproc-per-node 2 benchmarks/bench_tensor_parallel.py

A tiny random model of each type of causal language model that has a `tp_plan`, in float32 and with
gloo on a CPU. Writes benchmarks/results/tensor_parallel.csv: the largest difference relative to the
largest logit, the parameters of rank 0 and their forecast, or the error. An error that leaves the
ranks apart ends the run: run it again with --skip TYPE.
"""

import argparse
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from store_rows import setting, write_table
from torch.distributed.tensor import DTensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from caskd.models import open_model, rank_parameters

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from architectures.tiny_models import NotBuiltError, build

TOKENS = torch.arange(4, 30)[None]


def logits_of_one(model_type: str, folder: Path) -> torch.Tensor | None:
    """Logits of a new tiny model in one process; None without a plan, or where none is built."""
    try:
        model = build(model_type, folder)
    except NotBuiltError:
        return None
    return model(input_ids=TOKENS).logits.float() if model.tp_plan else None


def compared(folder: Path, whole: torch.Tensor) -> dict[str, Any]:
    """Figures of the model divided over all ranks."""
    try:
        model = open_model(folder, "--model", tensor_parallel=dist.get_world_size()).eval()
        logits = model(input_ids=TOKENS).logits.float()
    except Exception as error:  # models and transformers raise every kind
        return {"error": " ".join(str(error).split())[:100]}
    own = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return {
        "difference": f"{float((logits - whole).abs().max() / whole.abs().max()):.1e}",
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "of_rank_0": sum(weight.numel() for weight in own),
        "forecast": rank_parameters(model, dist.get_world_size()),
    }


@torch.no_grad()
def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip", nargs="*", default=[], help="types to leave out")
    parser.add_argument("--notes", default="", help="remark for the table")
    options = parser.parse_args()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            if model_type in options.skip:
                continue
            found: list[Any] = [None]
            if dist.get_rank() == 0:
                folder = Path(root, model_type)
                found = [(folder, logits_of_one(model_type, folder))]
            dist.broadcast_object_list(found, src=0)
            folder, whole = found[0]
            if whole is not None:
                table.append({"type": model_type, **compared(folder, whole)})
    if dist.get_rank() == 0:
        columns = {"transformers": transformers.__version__, "torch": torch.__version__}
        write_table("tensor_parallel", table, columns | setting(options.notes))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
