"""Which flags go with which backend: of captures and of answers, before any file is read."""

from collections.abc import Mapping, Sequence

from caskd.store.errors import UsageError

_RUNNERS = {"server": "the server", "vllm": "the engine"}


def check_flags(
    backend: str,
    urls: Sequence[str],
    served_model: str | None,
    *,
    needs: Mapping[str, tuple[Sequence[str], bool]],
    decided: Mapping[str, tuple[bool, str]],
    verb: str,
) -> None:
    """Refuse flags that the backend cannot follow, and a server without a URL.

    Args:
        backend: transformers, vllm or server.
        urls: of servers.
        served_model: the name that a server serves it under.
        needs: for a further flag, the backends that take it, and whether it was given.
        decided: for a flag, whether it was given although the backend decides what it is about, and
            how: a clause whose subject is the backend.
        verb: what the command does, such as `capture`.

    Raises:
        UsageError: names the flag and what to do.
    """
    of_servers = {
        "--url": (["server"], bool(urls)),
        "--served-model": (["server"], served_model is not None),
    }
    for flag, (backends, given) in {**of_servers, **needs}.items():
        if given and backend not in backends:
            raise UsageError(
                f"{flag}: was given with --backend {backend}; expected --backend "
                f"{' or '.join(backends)}; add it, or omit {flag}"
            )
    if backend == "server" and not urls:
        raise UsageError(
            "--backend server: no URL; expected at least one; pass --url http://HOST:PORT"
        )
    for flag, (given, why) in decided.items():
        if given:
            raise UsageError(
                f"--backend {backend} and {flag}: {_RUNNERS[backend]} {why}; expected one of the "
                f"two; omit {flag}, or {verb} with --backend transformers"
            )
