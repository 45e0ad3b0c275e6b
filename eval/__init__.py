"""The cascade's side: predictions of two models, deferral rules, curves and the report.

Names are imported when they are first used, so that a config costs no torch.
"""

from typing import TYPE_CHECKING

from caskd.store.imports import lazy_exports

if TYPE_CHECKING:
    from caskd.eval.config import PredictConfig
    from caskd.eval.curves import DeferralCurve, deferral_curve
    from caskd.eval.inference import predict
    from caskd.eval.serving import Cascade

__all__ = [
    "Cascade",
    "DeferralCurve",
    "PredictConfig",
    "deferral_curve",
    "predict",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Cascade": "serving",
        "DeferralCurve": "curves",
        "PredictConfig": "config",
        "deferral_curve": "curves",
        "predict": "inference",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
