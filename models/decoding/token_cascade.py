"""Decode with two models that share a vocabulary: the small one drafts, a rule of the two decides.

Speculative cascades (arXiv 2405.19261): the small model drafts up to gamma tokens, the large model
scores them in one forward, and the text continues from the first token that the rule replaces. Up
to rounding, the answer does not depend on gamma: a token is the likeliest, or drawn with a number
of its place. A rule that reads the small model alone needs no drafts: the large model reads the
text only where it chooses a token.

Legend: N positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from caskd.models.decoding.cached_model import CachedModel, Score
from caskd.models.decoding.call_token import call_score, without_call
from caskd.models.decoding.loaded_model import LoadedModel
from caskd.models.decoding.responses import Sampling
from caskd.models.decoding.sampled_tokens import draw, emit, uniforms_at
from caskd.models.decoding.stop_texts import StopTexts, answer_text
from caskd.models.decoding.token_router import RouterScorer, vocabulary_of
from caskd.models.decoding.token_rules import TOKEN_RULES, large_decides, total_variation


@dataclass(frozen=True)
class TokenCascadeAnswer:
    """The new tokens of one example, up to the first that ends it, and what they cost."""

    text: str
    """Without special tokens, and without the stop text and what follows it."""
    token_ids: list[int]
    token_logprobs: list[float]
    """Log-probability of each token in the model that chose it."""
    num_small_tokens: int
    """Tokens that the small model chose."""
    num_large_tokens: int
    """Tokens that the large model chose, those equal to the small model's choice included."""
    num_drafted: int
    """Tokens of the small model that the large model had to score; 0 for a rule without drafts."""
    num_accepted: int
    """Drafted tokens that stand in the answer."""
    num_small_forwards: int
    num_large_forwards: int
    num_small_computed: int
    """Positions that the small model computed: prompt, answer and rejected drafts."""
    num_large_computed: int
    expected_acceptance: float | None
    """Mean probability over the tokens that speculative sampling accepts a token drawn from the
    small model in their place, for the rule `spec`; None for other rules."""


@dataclass(frozen=True)
class ForcedTokens:
    """What a cascade decides at each token of a text that is given."""

    token_ids: list[int]
    """Tokens that it would choose."""
    by_large: list[bool]
    """Whether the large model chooses."""
    acceptance: list[float]
    """As `TokenCascadeAnswer.expected_acceptance`, for each token and any rule."""
    scores: list[float] | None
    """What the rule reads besides the probabilities; None if it reads nothing else."""


class TokenCascade:
    """Two models and a rule.

    Attributes:
        small: the small model, whose tokenizer reads and writes the texts.
        large: the large model.
        rule: name of the rule.
        drafts: whether the rule needs the large model at every token, so that drafts pay.
        is_exact: whether both models compute in float64, where answers do not depend on gamma.
    """

    def __init__(
        self,
        small: LoadedModel,
        large: LoadedModel,
        rule: str,
        setting: float = 0.0,
        gamma: int = 5,
        sampling: Sampling | None = None,
        router: RouterScorer | None = None,
    ) -> None:
        """Join two models, which `check_pair` has found to fit.

        Args:
            small: the small model.
            large: the large model.
            rule: a name of `TOKEN_RULES`.
            setting: the number that the rule reads.
            gamma: tokens of a draft.
            sampling: None for the likeliest tokens. Rules read the distributions at temperature 1.
            router: of the small model, for the rule `router`.
        """
        self.small = small
        self.large = large
        self.rule = rule
        self._rule = TOKEN_RULES[rule]
        self._setting = setting
        self.drafts = self._rule.reads_large
        self.is_exact = all(one.model.dtype == torch.float64 for one in (small, large))
        self._gamma = gamma if self.drafts else 1
        self._sampling = sampling
        vocab_size = len(vocabulary_of(small))
        self._router = router
        score = self._score()
        self._small = CachedModel(
            small.model, vocab_size, score, reads_states=self._rule.score == "router"
        )
        self._large = CachedModel(large.model, vocab_size)

    def _score(self) -> Score | None:
        """What the rule reads of the small model besides its probabilities."""
        if self._rule.score == "call":
            assert self.small.call_id is not None, "callers refuse a model without a CALL token"
            return partial(_call_scores, self.small.call_id, self.small.call_rule)
        if self._rule.score == "router":
            assert self._router is not None, "callers open the router of this rule"
            return self._router
        return None

    @torch.inference_mode()
    def answer(
        self, prompt: Sequence[int], max_new_tokens: int, stop: Sequence[str] = (), key: str = ""
    ) -> TokenCascadeAnswer:
        """Continuation of one prompt.

        Args:
            prompt: token ids.
            max_new_tokens: length of the longest answer, with the token that ends it.
            stop: texts that end the answer.
            key: name of the answer, for its draws.
        """
        stops = StopTexts(self.small.tokenizer, stop)
        new: list[int] = []
        logprobs: list[float] = []
        accepted_mass = 0.0
        num_large = num_drafted = num_accepted = 0
        self._small.restart()
        self._large.restart()
        done = False
        while not done and len(new) < max_new_tokens:
            text = [*prompt, *new]
            most = min(self._gamma, max_new_tokens - len(new))
            uniform = self._uniforms(key, len(new), most)
            drafted, q = self._draft(text, most, uniform)
            num_drafted += len(drafted) if self.drafts else 0
            for draft, (is_large, token, logprob, acceptance) in zip(
                drafted, self._decide(text, drafted, q, uniform), strict=True
            ):
                new.append(token)
                logprobs.append(logprob)
                accepted_mass += acceptance
                num_large += is_large
                num_accepted += self.drafts and token == draft
                done = token in self.small.stop_ids or stops.complete(new)
                if done or token != draft:
                    break
            # The last token is read with the next ones: its logits are needed then.
            self._small.roll_back(len(prompt) + len(new) - 1)
            self._large.roll_back(len(prompt) + len(new) - 1)
        return TokenCascadeAnswer(
            text=stops.cut(answer_text(self.small.tokenizer, new)),
            token_ids=new,
            token_logprobs=logprobs,
            num_small_tokens=len(new) - num_large,
            num_large_tokens=num_large,
            num_drafted=num_drafted,
            num_accepted=num_accepted,
            num_small_forwards=self._small.num_forwards,
            num_large_forwards=self._large.num_forwards,
            num_small_computed=self._small.num_computed,
            num_large_computed=self._large.num_computed,
            expected_acceptance=accepted_mass / len(new) if self.rule == "spec" else None,
        )

    @torch.inference_mode()
    def own_scores(
        self, prompt: Sequence[int], max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[float]:
        """The score that the rule reads, at each token of the small model's own answer."""
        stops = StopTexts(self.small.tokenizer, stop)
        new: list[int] = []
        found: list[float] = []
        self._small.restart()
        done = False
        while not done and len(new) < max_new_tokens:
            new.append(int(self._small.logits([*prompt, *new], 1).argmax()))
            assert self._small.scores is not None
            found += self._small.scores.tolist()
            done = new[-1] in self.small.stop_ids or stops.complete(new)
        return found

    def with_setting(self, setting: float) -> "TokenCascade":
        """The same models and rule with another number."""
        return TokenCascade(
            self.small,
            self.large,
            self.rule,
            setting,
            self._gamma,
            sampling=self._sampling,
            router=self._router,
        )

    @torch.inference_mode()
    def forced(self, prompt: Sequence[int], token_ids: Sequence[int]) -> ForcedTokens:
        """Likeliest tokens along a text, from one forward pass of each model over it.

        Args:
            prompt: token ids.
            token_ids: of the text behind it, one or more.
        """
        text = [*prompt, *token_ids]
        self._small.restart()
        self._large.restart()
        q = self._small.probabilities(text[:-1], len(token_ids))
        p = self._large.probabilities(text[:-1], len(token_ids))
        scores = self._small.scores
        by_large = large_decides(self._rule, self._setting, q, p, scores)
        return ForcedTokens(
            token_ids=torch.where(by_large, p.argmax(dim=-1), q.argmax(dim=-1)).tolist(),
            by_large=by_large.tolist(),
            acceptance=(1.0 - total_variation(q, p)).tolist(),
            scores=None if scores is None else scores.tolist(),
        )

    def num_flips(self, prompt: Sequence[int], token_ids: Sequence[int]) -> int:
        """Tokens of an answer that one forward pass of each model over the answer would replace.

        In exact arithmetic there are none. Rounding depends on how many tokens a pass computes, so
        that close decisions depend on gamma.
        """
        chosen = self.forced(prompt, token_ids).token_ids
        return sum(a != b for a, b in zip(chosen, token_ids, strict=True))

    def _uniforms(self, key: str, start: int, num: int) -> Tensor | None:
        """Numbers [num] of the tokens from `start` on; None for the likeliest tokens."""
        if self._sampling is None:
            return None
        seed = self._sampling.seed
        numbers = [uniforms_at(seed, key, place)[0] for place in range(start, start + num)]
        return torch.tensor(numbers, dtype=torch.float64, device=self.small.model.device)

    def _draft(
        self, text: Sequence[int], most: int, uniform: Tensor | None
    ) -> tuple[list[int], Tensor]:
        """Tokens [N] of the small model, and its logits [N, V] at each of them."""
        drafted: list[int] = []
        steps = []
        while len(drafted) < most and not (drafted and drafted[-1] in self.small.stop_ids):
            steps.append(self._small.logits([*text, *drafted], 1))
            if uniform is None:
                token = steps[-1].softmax(dim=-1).argmax()
            else:
                token = draw(self._heated(steps[-1]), uniform[len(drafted) : len(drafted) + 1])
            drafted.append(int(token))
        return drafted, torch.cat(steps)

    def _decide(
        self, text: Sequence[int], drafted: Sequence[int], small: Tensor, uniform: Tensor | None
    ) -> Iterator[tuple[bool, int, float, float]]:
        """For each drafted token: whether the large model decides, the token, its log-prob, and the
        acceptance of a token drawn in its place, 0 for rules that do not report it."""
        q = small.softmax(dim=-1)
        large, p = small, q
        # Only the scores of the last pass are there: a rule that reads them drafts nothing.
        scores = self._small.scores
        if self.drafts or bool(large_decides(self._rule, self._setting, q, q, scores)):
            # The large model may have read less than the small one, never more.
            large = self._large.logits([*text, *drafted[:-1]], len(drafted))
            p = large.softmax(dim=-1)
        if uniform is None:
            by_large = large_decides(self._rule, self._setting, q, p, scores)
            logprobs, chosen = torch.where(by_large[:, None], p, q).max(dim=-1)
        else:
            read = q if scores is None else scores[:, None]
            refused = self._rule.refused(read, p, self._setting).expand_as(q)
            small_proposes = self._rule.proposer == "small"
            proposer, other = (small, large) if small_proposes else (large, small)
            chosen, was_refused = emit(
                refused, self._heated(proposer), self._heated(other), uniform[: len(drafted)]
            )
            by_large = was_refused == small_proposes
            logprobs = torch.where(by_large[:, None], p, q).gather(-1, chosen[:, None])[:, 0]
        acceptance = torch.zeros_like(logprobs)
        if self.rule == "spec":
            acceptance = 1.0 - total_variation(q, p)
        columns = by_large, chosen, logprobs.log(), acceptance
        return zip(*(column.tolist() for column in columns), strict=True)

    def _heated(self, logits: Tensor) -> Tensor:
        """Probabilities [N, V] in float64 that tokens are drawn from."""
        assert self._sampling is not None, "called only where tokens are drawn"
        return (logits.double() / self._sampling.temperature).softmax(dim=-1)


def _call_scores(call_id: int, rule: str | None, _states: Tensor | None, logits: Tensor) -> Tensor:
    """`call_score` [N] of logits with all columns of the head."""
    others, log_odds = without_call(logits, call_id)
    return call_score(rule, log_odds, others.log_softmax(dim=-1).amax(dim=-1))
