"""Mixed-precision matrix products: operands may be bfloat16, the result is float32.

Rounding logits to bfloat16 loses eight bits of each, and summing a weight gradient in bfloat16
loses the contributions of later tiles. Tensor cores multiply bfloat16 and sum in float32 anyway.
"""

import torch
from torch import Tensor

_HAS_OUT_DTYPE = torch.__version__ >= "2.8"
"""`out_dtype` of torch.mm and torch.addmm: CUDA only, torch 2.8 or newer."""


def product_dtype(dtype: torch.dtype, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes of a product's operands and of its result.

    Bfloat16 operands stay so on CUDA. On a CPU a product returns the dtype of its operands, and
    float16 cannot hold gradients before their division, so in both cases operands become float32.
    """
    if dtype == torch.float64:
        return torch.float64, torch.float64
    if dtype == torch.bfloat16 and device.type == "cuda":
        return torch.bfloat16, torch.float32
    return torch.float32, torch.float32


def write_product_(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out [n, m] = a [n, h] @ b [h, m]."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if _HAS_OUT_DTYPE:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(torch.mm(a, b))


def add_product_(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out [n, m] += a [n, h] @ b [h, m]."""
    if a.dtype == out.dtype:
        return out.addmm_(a, b)
    if _HAS_OUT_DTYPE:
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    return out.add_(torch.mm(a, b))
