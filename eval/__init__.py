"""The cascade's side: predictions of two models, deferral rules, curves and the report.

Names are looked up when they are first used, so that importing a configuration stays free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caskd.eval.config import PredictConfig
    from caskd.eval.curves.deferral import DeferralCurve, deferral_curve
    from caskd.eval.inference.predictor import predict
    from caskd.eval.serving.cascade import Cascade

__all__ = ["Cascade", "DeferralCurve", "PredictConfig", "deferral_curve", "predict"]

_HOMES = {
    "Cascade": "cascade",
    "DeferralCurve": "curves",
    "PredictConfig": "config",
    "deferral_curve": "curves",
    "predict": "generate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
