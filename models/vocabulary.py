"""Check that a model and a store share one vocabulary, and which tokens end its answers."""

from typing import Any

from caskd.store import StoreSpec
from caskd.store.corpus import token_bytes, vocab_digest, vocab_size
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import value_text

CALL_TOKEN = "<CALL>"
"""Token with which a student trained with --delegate asks for the large model: the last of its
vocabulary, which is otherwise the teacher's. config.json has its id as `call_token_id`, and the
rule that trained it as `call_token_rule`."""


def call_id(config: Any, tokenizer: Any, flag: str) -> int | None:
    """Id of a model's CALL token; None if it has none.

    Raises:
        UsageError: its config and its tokenizer disagree, or it is not the last token.
    """
    found = getattr(config, "call_token_id", None)
    if found is None:
        return None
    token = tokenizer.get_vocab().get(CALL_TOKEN)
    if found != token or found != vocab_size(tokenizer) - 1:
        raise UsageError(
            f"{flag}: call_token_id is {value_text(found)} in config.json, and its tokenizer gives "
            f"{CALL_TOKEN} id {token} of {vocab_size(tokenizer):,}; expected the last id in both, "
            "as caskd export writes them; export the model again"
        )
    return int(found)


def check_vocabulary(tokenizer: Any, spec: StoreSpec, flag: str, call: int | None = None) -> None:
    """Refuse a tokenizer whose vocabulary differs from the store's.

    Args:
        tokenizer: of the model.
        spec: of the store.
        flag: the option that named the model and its value, such as `--student gpt2`.
        call: id of the model's CALL token, which the store lacks; None if it has none.

    Raises:
        IdentityError: the vocabularies differ, so that token ids would be misread.
    """
    tokens = token_bytes(tokenizer)[:call]
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
