"""Tiny checkpoints of 4 bits as GPTQ and AWQ pack them, and the model that their weights are."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

GROUP = 32
"""Weights of one output that share a scale."""
_ZERO = 8
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
_SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {"desc_act": False, "sym": True, "checkpoint_format": "gptq"},
    "awq": {"zero_point": True, "version": "gemm"},
}


def save_packed(whole: Path, folder: Path, method: str) -> Path:
    """Write `folder` with the linear layers of `whole` in 4 bits.

    Returns:
        A folder with the same weights unpacked, in float32.
    """
    plain = folder.with_name(f"{folder.name}-unpacked")
    config = json.loads((whole / "config.json").read_text())
    scheme = {"quant_method": method, "bits": 4, "group_size": GROUP, **_SETTINGS[method]}
    packed: dict[str, torch.Tensor] = {}
    unpacked: dict[str, torch.Tensor] = {}
    for name, weight in load_file(whole / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            packed[name] = unpacked[name] = weight.contiguous()
            continue
        levels, scales = _rounded(weight.float())
        unpacked[name] = (levels * scales[..., None]).reshape(weight.shape).contiguous()
        packed |= _tensors(name.removesuffix("weight"), levels, scales, method)
    for target, tensors, more in (
        (folder, packed, {"quantization_config": scheme}),
        (plain, unpacked, {}),
    ):
        shutil.copytree(whole, target)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps({**config, **more}))
    return plain


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels [out, groups, GROUP] from -8 to 7, and scales [out, groups] that float16 holds."""
    groups = weight.reshape(len(weight), -1, GROUP)
    scales = (groups.abs().amax(-1) / 7).half().float()
    return (groups / scales[..., None]).round().clamp(-8, 7), scales


def _tensors(
    prefix: str, levels: torch.Tensor, scales: torch.Tensor, method: str
) -> dict[str, torch.Tensor]:
    num_out, num_groups, _ = levels.shape
    raised = (levels + _ZERO).reshape(num_out, -1).t()  # [in, out]
    # GPTQ keeps a zero point that is one smaller.
    zeros = torch.full((num_groups, num_out), _ZERO - (method == "gptq"))
    if method == "awq":
        raised, zeros = _awq_order(raised), _awq_order(zeros)
    found = {
        "qweight": _nibbles(raised, 0 if method == "gptq" else 1),
        "qzeros": _nibbles(zeros, 1),
        "scales": scales.t().contiguous().half(),
    }
    if method == "gptq":
        found["g_idx"] = (torch.arange(len(raised)) // GROUP).int()
    return {prefix + name: value for name, value in found.items()}


def _awq_order(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(len(values), -1, 8)[..., _AWQ_ORDER].reshape(values.shape)


def _nibbles(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Eight values along `dim` in each int32, the first in its lowest bits."""
    parts = values.long().movedim(dim, -1).unflatten(-1, (-1, 8))
    whole = (parts << (4 * torch.arange(8))).sum(-1)
    signed = torch.where(whole >= 1 << 31, whole - (1 << 32), whole)
    return signed.int().movedim(-1, dim).contiguous()
