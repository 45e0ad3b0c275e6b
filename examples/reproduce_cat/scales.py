"""Model sizes, steps and seeds for each scale of hardware.

Fixed before the first arm was trained, except `ADDED`, and never tuned on the results of an arm.
"""

from dataclasses import dataclass
from types import MappingProxyType

CONDITIONS = MappingProxyType(
    {
        "noisy20-clean-teacher": ("-noisy20", "clean"),
        "clean": ("", "clean"),
        "noisy20-noisy-teacher": ("-noisy20", "noisy20"),
        "noisy40-clean-teacher": ("-noisy40", "clean"),
        "noisy40-noisy-teacher": ("-noisy40", "noisy40"),
    }
)
"""Condition -> suffix of the student's training data, and the teacher that fills the store. The
positive control is first."""
ADDED = ("noisy40-clean-teacher", "noisy40-noisy-teacher")
"""Conditions added after most seeds of the others had been seen, before any of their own ran."""

PRIMARY = ("xent", "cat-xent", "random-xent")
SECONDARY = ("dist", "cat-dist", "cat-xent-l", "cat-xent-s", "cat-dist-l", "cat-dist-s")
TEXT_ARMS = ("xent", "cat-xent", "random-xent", "dist", "cat-dist")
"""Arms of a pool of plain text, on clean labels."""
RULE_ARMS = ("cat-xent", "cat-dist")
"""Arms on which deferral rules are compared."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Optimizer steps of a pool's models."""

    teacher: int
    pretrain: int
    arm: int
    batch: int = 64
    """Examples per step."""
    teacher_reading: int = 0
    """Steps of a first stage on all tokens of the prompts: labels alone teach few words."""
    primary_seeds: int = 10
    """Seeds of `PRIMARY`, in every condition except `ADDED`."""
    added_seeds: int = 5
    """Seeds of `PRIMARY` in `ADDED`."""
    secondary_seeds: int = 3
    """Seeds of `SECONDARY` on clean labels, or of `TEXT_ARMS`."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size of the whole experiment."""

    pools: MappingProxyType[str, Steps]
    teacher_shape: tuple[int, int] | None = None
    """Hidden size and layers of a model from scratch; None with --teacher."""
    student_shape: tuple[int, int] | None = None
    token_budget: int = 1024
    teacher_lr: float = 1e-3
    pretrain_lr: float = 2e-3
    arm_lr: float = 1e-3
    dtype: str = "float32"
    top_k: int = 32
    shard_rows: int = 8192
    predict_batch: int = 64


SCALES = MappingProxyType(
    {
        "cpu": Scale(
            pools=MappingProxyType(
                {
                    "generation": Steps(teacher=2200, pretrain=800, arm=600),
                    "classification": Steps(
                        teacher=1200, teacher_reading=1200, pretrain=400, arm=400
                    ),
                    "text": Steps(teacher=600, pretrain=200, arm=300, batch=16),
                    # The first version. Its teacher led by less than five points, so it ended at
                    # three seeds; the teacher of `classification` reads before it classifies.
                    "classification-unread": Steps(
                        teacher=1500,
                        pretrain=400,
                        arm=400,
                        primary_seeds=3,
                        added_seeds=0,
                        secondary_seeds=0,
                    ),
                }
            ),
            teacher_shape=(192, 4),
            student_shape=(96, 2),
        ),
        "gpu": Scale(
            pools=MappingProxyType(
                {
                    "generation": Steps(teacher=3000, pretrain=1000, arm=3000),
                    "classification": Steps(teacher=3000, pretrain=1000, arm=2000),
                    "pretrained": Steps(teacher=1500, pretrain=500, arm=1500),
                    "text": Steps(teacher=200, pretrain=50, arm=300, batch=16),
                }
            ),
            token_budget=16384,
            teacher_lr=2e-5,
            pretrain_lr=5e-5,
            arm_lr=5e-5,
            dtype="bfloat16",
            top_k=64,
            shard_rows=65536,
            predict_batch=256,
        ),
    }
)
"""`cpu` starts from scratch at 2 M and 0.3 M parameters; `gpu` takes --teacher and --student."""
