"""Token cascades by their definition: one forward of each model for every token, no cache."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from caskd.models.decoding import LoadedModel, RouterNetwork, RouterScorer, router_reader
from helpers.tiny import tiny_tokenizer

Pair = tuple[LoadedModel, LoadedModel]
LAST = len(tiny_tokenizer()) - 1
SETTINGS = {
    "spec": 0.0, "chow": 0.8, "diff": 0.02, "opt": 0.05, "token-v1": 0.0, "token-v2": 0.03,
    "token-v3": 0.2, "entropy": 3.1, "margin": 0.8, "call": -3.5, "router": 0.5, "rsd": 0.1,
}  # fmt: skip
"""A number of each rule with which both models of `save_pair` choose tokens."""
STUDENT_ONLY = ("chow", "entropy", "margin", "call", "router")


def random_router(pair: Pair) -> RouterScorer:
    """A router with random weights, spread out so that it tells tokens apart."""
    small, _ = pair
    reader = router_reader(small, small.model.config.hidden_size, "--router r")
    torch.manual_seed(1)
    network = RouterNetwork(reader.sizes).eval().requires_grad_(False)
    network.out.weight *= 8.0
    return RouterScorer(network, reader)


def pair_of(rule: str, pair: Pair) -> Pair:
    """The pair; for `call`, the last id of the small model's vocabulary is its CALL token."""
    small, large = pair
    return (replace(small, call_id=LAST), large) if rule == "call" else pair


class SequentialCascade:
    """Called with a rule and a prompt: the new tokens, and which the large model chose."""

    def __init__(self, pair: Pair, router: RouterScorer, num_tokens: int) -> None:
        self._pair, self._router, self._num_tokens = pair, router, num_tokens
        self._at = cache(self._read)

    @torch.inference_mode()
    def __call__(self, rule: str, prompt: Sequence[int]) -> tuple[list[int], list[bool]]:
        ids, by_large = list(prompt), []
        while len(ids) < len(prompt) + self._num_tokens:
            logits, state = self._at(tuple(ids))
            cut = LAST if rule == "call" else None
            q, p = (one[:cut].softmax(-1).numpy() for one in logits)
            score = self._score(rule, logits[0], state)
            by_large.append(bool(takes_large(rule, SETTINGS[rule], q, p, score)))
            ids.append(int((p if by_large[-1] else q).argmax()))
            if ids[-1] in self._pair[0].stop_ids:
                break
        return ids[len(prompt) :], by_large

    @torch.inference_mode()
    def _read(self, ids: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
        texts = torch.tensor([ids])
        outputs = [loaded.model(texts, output_hidden_states=True) for loaded in self._pair]
        return [one.logits[0, -1] for one in outputs], outputs[0].hidden_states[-1][0, -1:]

    def _score(self, rule: str, logits: torch.Tensor, state: torch.Tensor) -> float:
        if rule == "call":
            return float(logits[LAST] - logits[:LAST].exp().sum().log())
        if rule == "router":
            own = logits.float()
            embedded = self._pair[0].model.get_input_embeddings().weight[[int(own.argmax())]]
            top = own.sort(descending=True).values[None, : self._router.reader.sizes.logits]
            network = self._router.network
            return float(network(state.float(), top, embedded.float()).sigmoid())
        return 0.0


def takes_large(rule: str, number: float, q: np.ndarray, p: np.ndarray, score: float) -> bool:
    """The rules as their papers state them, for one position."""
    a, b = int(q.argmax()), int(p.argmax())
    first, second = np.sort(q)[::-1][:2]
    return {
        "spec": lambda: True,
        "chow": lambda: q[a] < 1 - number,
        "diff": lambda: q[a] < p[b] - number,
        "opt": lambda: q[a] < p[b] - number * (1 - np.minimum(q, p).sum()),
        "token-v1": lambda: q[a] < p[b] - number,
        "token-v2": lambda: p[a] < p[b] - number,
        "token-v3": lambda: p[a] < (1 - number) * p[b],
        "entropy": lambda: -(q * np.log(q)).sum() >= number,
        "margin": lambda: np.log(first) - np.log(second) <= number,
        "call": lambda: score >= number,
        "router": lambda: score >= number,
        "rsd": lambda: q[b] >= number,
    }[rule]()
