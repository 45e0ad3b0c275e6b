"""Which flags of a capture go with which backend; checked before any file is read."""

from collections.abc import Iterator

from caskd.precompute.config import PrecomputeConfig
from caskd.store.errors import UsageError


def check_backend(config: PrecomputeConfig) -> None:
    """Refuse flags that the backend cannot follow.

    Raises:
        UsageError: names the flag and what to do.
    """
    backend = config.backend
    needs = {
        "--url": ("server", bool(config.url)),
        "--served-model": ("server", config.served_model is not None),
    }
    for flag, (needed, given) in needs.items():
        if given and backend != needed:
            raise UsageError(
                f"{flag}: was given with --backend {backend}; expected --backend {needed}; add it, "
                f"or omit {flag}"
            )
    if backend == "server" and not config.url:
        raise UsageError(
            "--backend server: no URL; expected at least one; pass --url http://HOST:PORT"
        )
    if backend == "transformers":
        return
    runner = {"server": "the server", "vllm": "the engine"}[backend]
    for flag, why in _decided_elsewhere(config):
        raise UsageError(
            f"--backend {backend} and {flag}: {runner} {why}; expected one of the two; omit "
            f"{flag}, or capture with --backend transformers"
        )


def _decided_elsewhere(config: PrecomputeConfig) -> Iterator[tuple[str, str]]:
    """The flags that were given although the backend decides what they are about, and why."""
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
    flags = {**both, **(server if config.backend == "server" else vllm)}
    for flag, (given, why) in flags.items():
        if given:
            yield flag, why
