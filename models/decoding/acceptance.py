"""Expected acceptance of a draft model by a teacher of which a top-k is stored.

Legend: n rows, k stored tokens of each.
"""

from torch import Tensor


def acceptance_bounds(drafted: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest acceptance [n] in speculative sampling (arXiv 2211.17192).

    A token drawn from the draft model q is accepted by the teacher p with probability 1 minus their
    total variation distance. With h half the sum of |p - q| over the stored tokens and P, Q the
    masses of both models on them, the distance lies between h + |P - Q| / 2 and
    h + ((1 - P) + (1 - Q)) / 2: outside of them, the two agree as far as their masses allow, or
    share no token.

    Args:
        drafted: [n, k] q of the stored tokens; any where `kept` is 0.
        kept: [n, k] p of them; 0 where fewer are stored.
    """
    drafted = drafted * (kept > 0)
    inside = 0.5 * (kept - drafted).abs().sum(dim=-1)
    teacher_mass, draft_mass = kept.sum(dim=-1).clamp(max=1.0), drafted.sum(dim=-1).clamp(max=1.0)
    least = inside + 0.5 * (teacher_mass - draft_mass).abs()
    most = inside + 0.5 * ((1.0 - teacher_mass) + (1.0 - draft_mass))
    return (1.0 - most).clamp(0.0, 1.0), (1.0 - least).clamp(0.0, 1.0)
