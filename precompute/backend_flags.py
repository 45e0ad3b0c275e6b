"""Which flags of a capture go with which backend; checked before any file is read."""

from caskd.models.engines import check_flags
from caskd.precompute.config import PrecomputeConfig


def check_backend(config: PrecomputeConfig) -> None:
    """Refuse flags that the backend cannot follow.

    Raises:
        UsageError: names the flag and what to do.
    """
    check_flags(
        config.backend,
        config.url,
        config.served_model,
        needs={},
        decided=_decided_elsewhere(config),
        verb="capture",
    )


def _decided_elsewhere(config: PrecomputeConfig) -> dict[str, tuple[bool, str]]:
    """The flags about what the backend decides itself: whether they were given, and why not."""
    if config.backend == "transformers":
        return {}
    both = {
        "--deterministic": (config.deterministic, "composes its own batches"),
        "--attention": (config.attention != "auto", "has its own attention"),
        "--device": (config.device != "auto", "has its own devices"),
        "--device-map": (config.device_map is not None, "has its own devices"),
    }
    server = {
        "--sample": (config.sample is not None, "gives no whole distribution to draw from"),
        "--head": (config.head is not None, "gives no whole distribution to draw from"),
        "--adapter": (config.adapter is not None, "applies adapters itself"),
        "--dtype": (config.dtype != "auto", "has its own dtype"),
        "--tensor-parallel": (config.tensor_parallel != 1, "divides the model itself"),
    }
    vllm = {
        "--adapter": (config.adapter is not None, "runs whole checkpoints: merge the adapter"),
        f"--executor {config.executor}": (
            config.executor != "local",
            "starts its own processes: number the workers with --worker and --num-workers",
        ),
    }
    return {**both, **(server if config.backend == "server" else vllm)}
