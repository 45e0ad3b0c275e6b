"""Check that a model and a store share one vocabulary, and which tokens end its answers."""

from typing import Any

from caskd.store import StoreSpec
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.errors import IdentityError


def check_vocabulary(tokenizer: Any, spec: StoreSpec, flag: str) -> None:
    """Refuse a tokenizer whose vocabulary differs from the store's.

    Args:
        tokenizer: of the model.
        spec: of the store.
        flag: the option that named the model and its value, such as `--student gpt2`.

    Raises:
        IdentityError: the vocabularies differ, so that token ids would be misread.
    """
    tokens = token_bytes(tokenizer)
    own = vocab_digest(tokens)
    if own != spec.vocab_digest:
        raise IdentityError(
            f"{flag}: its vocabulary ({len(tokens)} tokens, digest {own[:12]}) differs from the "
            f"store's ({spec.vocab_size} tokens, digest {spec.vocab_digest[:12]}, teacher "
            f"{spec.teacher}), so that token ids would be misread; expected a student with the "
            "teacher's tokenizer; pass another model, or precompute a store for this one"
        )


def stop_ids(tokenizer: Any, *generation_configs: Any) -> tuple[int, ...]:
    """Ids that end an answer: those of the generation configs (None is skipped), then the
    tokenizer's EOS."""
    ids: list[Any] = []
    for config in generation_configs:
        found = getattr(config, "eos_token_id", None)
        ids += found if isinstance(found, list | tuple) else [found]
    ids.append(getattr(tokenizer, "eos_token_id", None))
    return tuple(dict.fromkeys(int(token) for token in ids if token is not None))
