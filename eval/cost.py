"""What a cascade costs in floating-point operations.

A forward pass costs 2 FLOPs per parameter and token. The small model always answers; the large one
answers the deferred examples besides: cost = C_small + deferral_rate * C_large. Every example
weighs the same.
"""

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import deferred_mean

FloatArray = npt.NDArray[np.float64]


def flops_per_token(num_parameters: int) -> float:
    """FLOPs of one token: 2 per parameter, as in CAT (arXiv 2406.00060)."""
    return 2.0 * num_parameters


def token_cost(
    deferral_rate: FloatArray, small_parameters: int, large_parameters: int
) -> FloatArray:
    """FLOPs per token [P] of the cascade at each deferral rate: the paper's axis.

    It leaves out that prompts are read too and that answers differ in length; see `example_cost`.
    """
    return flops_per_token(small_parameters) + deferral_rate * flops_per_token(large_parameters)


def example_cost(
    score: FloatArray,
    small_parameters: int,
    small_tokens: FloatArray,
    large_parameters: int,
    large_tokens: FloatArray,
) -> FloatArray:
    """Mean FLOPs per example [P] at each point of the curve, prompts and lengths counted.

    Args:
        score: [E] deferral score.
        small_parameters: parameters of the small model.
        small_tokens: [E] prompt and output tokens that the small model processed.
        large_parameters: parameters of the large model.
        large_tokens: [E] the same of the large model.
    """
    always = flops_per_token(small_parameters) * float(small_tokens.mean())
    return always + flops_per_token(large_parameters) * deferred_mean(score, large_tokens)
