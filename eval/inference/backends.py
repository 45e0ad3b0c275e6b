"""Which flags of `caskd predict` go with which backend; checked before any file is read."""

from caskd.eval.config import PredictConfig
from caskd.models.engines import check_flags
from caskd.store.errors import UsageError


def check_backend(config: PredictConfig) -> None:
    """Refuse flags that the backend cannot follow, and a missing model or URL.

    Raises:
        UsageError: names the flag and what to do.
    """
    check_flags(
        config.backend,
        config.url,
        config.served_model,
        needs={
            "--api chat": (["server"], config.api == "chat"),
            f"--tensor-parallel {config.tensor_parallel}": (["vllm"], config.tensor_parallel != 1),
        },
        decided=_decided_elsewhere(config),
        verb="answer",
    )
    limits = {"server_concurrency": 4096, "tensor_parallel": 1024}
    for name, high in limits.items():
        value = getattr(config, name)
        if not 1 <= value <= high:
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: expected 1 to {high:,}; pass another number"
            )
    if config.backend != "server" and not config.model:
        raise UsageError(
            "--model: missing; expected a folder or a hub id; pass --model MODEL, or --backend "
            "server with --url"
        )


def _decided_elsewhere(config: PredictConfig) -> dict[str, tuple[bool, str]]:
    """The flags about what the backend decides itself: whether they were given, and why not."""
    if config.backend == "transformers":
        return {}
    both = {
        "--hidden": (config.hidden is not None, "gives no hidden states"),
        "--large": (config.large is not None, "has one model"),
        "--device": (config.device != "auto", "has its own devices"),
    }
    if config.backend == "vllm":
        return both
    server = {"--dtype": (config.dtype != "auto", "has its own dtype")}
    if config.api == "chat" or not config.model:
        why = "renders conversations itself"
        server |= {
            "--chat-template": (config.chat_template is not None, why),
            "--train-template-tokens": (config.train_template_tokens, why),
        }
    return {**both, **server}
