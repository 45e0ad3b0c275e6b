"""Whether two models can decode together: one vocabulary, one end, caches that go back."""

from collections.abc import Sequence

from caskd.models.decoding.cached_model import check_roll_back
from caskd.models.decoding.loaded_model import LoadedModel
from caskd.models.decoding.token_cascade import TokenCascade
from caskd.models.decoding.token_router import vocabulary_of
from caskd.store.corpus import vocab_digest
from caskd.store.errors import IdentityError


def check_pair(
    small: LoadedModel, large: LoadedModel, flag: str, *, own_templates: bool = True
) -> None:
    """Refuse two models that cannot continue one text.

    Args:
        small: the small model.
        large: the large model.
        flag: the option that named the large model and its value, for errors.
        own_templates: whether prompts are rendered by the models' own chat templates.

    Raises:
        IdentityError: their vocabularies, ends of answers or chat templates differ.
    """
    name = small.identity["name"]
    sizes = [len(vocabulary_of(model)) for model in (small, large)]
    digests = [vocab_digest(vocabulary_of(model)) for model in (small, large)]
    if digests[0] != digests[1]:
        raise IdentityError(
            f"{flag}: its vocabulary ({sizes[1]:,} tokens, digest {digests[1][:12]}) differs from "
            f"that of --model {name} ({sizes[0]:,} tokens, digest {digests[0][:12]}); expected two "
            "models with one vocabulary; pass another model"
        )
    ends = [sorted(model.stop_ids) for model in (small, large)]
    if ends[0] != ends[1]:
        raise IdentityError(
            f"{flag}: its answers end at ids {ends[1]}, those of --model {name} at {ends[0]}; "
            "expected the same end-of-sequence ids; correct eos_token_id in generation_config.json "
            "of one of them"
        )
    templates = [model.identity["template_digest"] for model in (small, large)]
    if own_templates and templates[0] != templates[1]:
        shown = [str(digest)[:12] if digest else "none" for digest in templates]
        raise IdentityError(
            f"{flag}: its chat template (digest {shown[1]}) differs from that of --model {name} "
            f"({shown[0]}); expected one template; pass --chat-template FILE for both"
        )


def check_caches(cascade: TokenCascade, flags: Sequence[str], longest: int) -> None:
    """Refuse a cascade in which the cache of a model does not roll back exactly.

    Args:
        cascade: the two models.
        flags: the options that named the small and the large model, and their values.
        longest: tokens of the longest text that will be decoded.

    Raises:
        UsageError: a cache does not.
    """
    for loaded, flag in zip((cascade.small, cascade.large), flags, strict=True):
        check_roll_back(loaded, flag, longest)
