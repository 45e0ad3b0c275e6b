"""`caskd rollout`: two models write the answers of a corpus together, which one of them can learn.

Reverse speculative decoding (arXiv 2509.22230): the large model proposes each token, and it is kept
where the small model finds it likely enough; else the small model's own token stands in its place.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from caskd.models import check_openable, pick_device
from caskd.models.decoding import (
    Sampling,
    TokenCascade,
    check_caches,
    check_pair,
    load_for_decoding,
)
from caskd.precompute.responses.answering import chat_of, check_lengths, prompts_of
from caskd.precompute.responses.rereading import Rereading
from caskd.precompute.responses.writing import (
    Answering,
    Response,
    Target,
    check_answers,
    sampling_of,
    write_answers,
)
from caskd.precompute.rollout_config import RolloutConfig
from caskd.store.corpus import Columns, Record
from caskd.store.errors import UsageError
from caskd.store.io import tell

_COUNTS = ("num_large_tokens", "num_drafted", "num_accepted", "num_large_forwards")


def rollout_command(config: RolloutConfig) -> None:
    """Run `caskd rollout`.

    Answers are the same for any number of workers, after any kill and, up to rounding, for any
    gamma.

    Raises:
        UsageError: a flag, the data or a model cannot be used.
        IdentityError: the two models cannot continue one text, or existing parts, or a finished
            file, belong to another request.
    """
    target = Target(Path(config.out), "--out", "caskd rollout")
    if not (0.0 <= config.p_th < math.inf):
        raise UsageError(
            f"--p-th {config.p_th:g}: expected a probability, 0 or more (above 1 no token passes); "
            "pass another number"
        )
    if config.gamma < 1:
        raise UsageError(f"--gamma {config.gamma}: expected 1 or more; pass another number")
    check_answers(config, target)
    pick_device(config.device)
    check_openable(config.model, "--model")
    check_openable(config.large, "--large")
    counts = write_answers(config, target, partial(_open_pair, config))
    if counts is None:
        return
    tokens, large = counts["num_tokens"], counts["num_large_tokens"]
    tell(
        f"{target.out}: the large model chose {large:,} of {tokens:,} tokens "
        f"({large / max(tokens, 1):.1%}), the small one those where it gives less than "
        f"{config.p_th:g} to the large one's; "
        f"{counts['num_accepted']:,} of {counts['num_drafted']:,} drafts stand, "
        f"{counts['num_large_forwards']:,} forwards of the large model"
    )
    tell(f"next: caskd precompute --teacher {config.large} --data {target.out} --store STORE")


class _Pair:
    """Two models in this process."""

    def __init__(
        self, cascade: TokenCascade, prompts: list[list[int]], limit: int, rereading: Rereading
    ) -> None:
        self._cascade, self._prompts, self._limit = cascade, prompts, limit
        self._rereading = rereading
        self.identity: dict[str, Any] = {}
        self.batches = [[index] for index in range(len(prompts))]

    def answers(self, batches: Iterable[Sequence[int]]) -> Iterator[list[Response]]:
        """As in `Answering`."""
        for batch in batches:
            yield [self._answer(index) for index in batch]

    def _answer(self, index: int) -> Response:
        answer = self._cascade.answer(self._prompts[index], self._limit, key=str(index))
        ids = answer.token_ids
        counts = {name: getattr(answer, name) for name in _COUNTS}
        found = self._rereading.generated(index, ids, self._cascade.small.stop_ids)
        return replace(found, counts={"num_tokens": len(ids), **counts, **found.counts})


@contextmanager
def _open_pair(
    config: RolloutConfig, records: Sequence[Record], columns: Columns, limit: int
) -> Iterator[Answering]:
    """Open both models for the length of a block."""
    flags = (f"--model {config.model}", f"--large {config.large}")
    small, large = (
        load_for_decoding(source, flag, dtype=config.dtype, device=config.device)
        for source, flag in ((config.model, "--model"), (config.large, "--large"))
    )
    check_pair(small, large, flags[1], own_templates=config.chat_template is None)
    prompts, text = prompts_of(small.tokenizer, config, flags[0], records, columns)
    for model in (small, large):
        check_lengths(prompts, model.max_positions, limit)
    sampling: Sampling | None = sampling_of(config)
    cascade = TokenCascade(small, large, config.rule, config.p_th, config.gamma, sampling)
    check_caches(cascade, flags, max(map(len, prompts)) + limit)
    reread = Rereading.of(small.tokenizer, records, columns, chat_of(config))
    pair = _Pair(cascade, prompts, limit, reread)
    pair.identity = {
        "small": small.identity,
        "large": large.identity,
        "stop_ids": list(small.stop_ids),
        "rule": {"name": config.rule, "p_th": config.p_th, "gamma": config.gamma},
        "text": text,
    }
    yield pair
