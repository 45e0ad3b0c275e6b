"""The vllm backend: a checkpoint that a vLLM engine runs, on one device or several."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from caskd.models import (
    check_safetensors,
    config_digest,
    load_dtype_of,
    locate,
    open_config,
    open_tokenizer,
    quantization_of,
    weights_digest,
)
from caskd.models.engines import (
    EngineOptions,
    PromptRows,
    VllmEngine,
    check_version,
    fixed_prompts,
    key_of,
    measure_fingerprint,
    vllm_version,
)
from caskd.precompute.checkpoints import FLAG, length_limit
from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.teacher.server_source import FINGERPRINT_CELLS
from caskd.precompute.teacher.vllm_teacher import LiveEngine, VllmTeacher, prompt_rows
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.errors import IdentityError, UsageError
from caskd.store.fingerprint import FINGERPRINT
from caskd.store.format import StoreSpec, identity_differences
from caskd.store.io import tell
from caskd.store.write import ShardExample

_MIXIN = "caskd.precompute.teacher.vllm_hook.RowCapture"
_PUBLIC_BYTES = 2 << 30
"""What vLLM's own log-probabilities of one pass may take."""
_BYTES_PER_LOGIT = 10
"""In the model's dtype, in float32, and as log-probabilities."""
_TEST_PROMPTS = 4


def public_batch_tokens(token_budget: int, num_columns: int) -> int:
    """Tokens of a pass for which vLLM may hold the logits of every token."""
    return max(1, min(token_budget, _PUBLIC_BYTES // (_BYTES_PER_LOGIT * num_columns)))


@dataclass(frozen=True)
class VllmSource:
    """A checkpoint on this machine, and the engine that runs it once it is needed."""

    name: str
    revision: str | None
    tokenizer: Any
    config: Any
    num_ids: int
    """Ids that the model can read and predict, within the tokenizer's vocabulary."""
    num_columns: int
    """Columns of the model's logits."""
    vocab_digest: str
    max_length: int | None
    options: EngineOptions
    release: str
    """Major and minor number of vLLM."""
    hooked: bool
    """Whether this release is tested, so that its workers compute rows from logits."""

    @classmethod
    def find(cls, config: PrecomputeConfig) -> "VllmSource":
        """Open the tokenizer and the config; starts no engine.

        Raises:
            UsageError: there is no such checkpoint, or no vLLM that caskd supports.
        """
        release, hooked = check_version(vllm_version(), "--backend vllm")
        if not hooked:
            _check_public(config, release)
        found = locate(config.teacher, FLAG)
        check_safetensors(found.folder, f"{FLAG} {config.teacher}")
        model_config = open_config(found.folder, FLAG)
        tokenizer = open_tokenizer(found.folder, FLAG)
        text_config = model_config.get_text_config()
        vocab = token_bytes(tokenizer)
        num_columns = int(text_config.vocab_size)
        limit = length_limit(text_config, tokenizer)
        budget = config.token_budget
        if not hooked:  # its own log-probabilities need the label and one token more
            limit = None if limit is None else limit - 1
            budget = public_batch_tokens(budget, num_columns)
        length = config.max_length or limit or 0
        options = EngineOptions(
            folder=found.folder,
            subject=f"{FLAG} {found.name}",
            dtype=load_dtype_of(text_config, config.dtype),
            tensor_parallel=config.tensor_parallel,
            max_length=length if hooked else length + 1,
            batch_tokens=budget,
            mixin=_MIXIN,
        )
        return cls(
            name=found.name,
            revision=found.revision,
            tokenizer=tokenizer,
            config=model_config,
            num_ids=min(len(vocab), num_columns),
            num_columns=num_columns,
            vocab_digest=vocab_digest(vocab),
            max_length=limit,
            options=options,
            release=release,
            hooked=hooked,
        )

    @property
    def weights(self) -> None:
        """Unknown: vLLM divides and packs the weights."""
        return None

    def identity(self) -> dict[str, Any]:
        """Fields of `identity.teacher` in store.json, but for the fingerprint."""
        folder = self.options.folder
        return {
            "name": self.name,
            "revision": self.revision,
            "weights_digest": weights_digest(folder),
            "adapter": None,
            "config_digest": config_digest(folder),
        }

    def fingerprint(self) -> dict[str, Any]:
        """`identity.teacher.fingerprint` in store.json; starts the engine.

        Raises:
            EngineError: it does not start.
        """
        return self._measured

    def capture(self) -> dict[str, Any]:
        """Fields of `identity.capture` in store.json that decide the numbers."""
        public = {} if self.hooked else {"rank": "capped", "tail": "complement"}
        return {
            "engine": "vllm",
            "engine_version": self.release,
            "values": "logits" if self.hooked else "log-probs",
            **public,
            "tensor_parallel": self.options.tensor_parallel,
            "load_dtype": self.options.dtype,
            "logits_dtype": self.options.dtype,
            "attention": None,
            "quantization": quantization_of(self.config),
            "temperature": 1.0,
        }

    @cached_property
    def _live(self) -> LiveEngine:
        return LiveEngine(
            partial(VllmEngine, self.options),
            prompts=self._prompts[:_TEST_PROMPTS],
            num_columns=self.num_columns,
            dtype=self.options.dtype,
            hooked=self.hooked,
        )

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return fixed_prompts(self.num_ids, key_of(self.vocab_digest))

    def _measure(self) -> dict[str, Any]:
        """Ask the engine for its fingerprint."""
        capture = {"kind": "topk", "top_k": FINGERPRINT_CELLS, "min_mass": 1.0}
        teacher = VllmTeacher(self._live, capture, self.num_ids)

        def score_all(prompts: Sequence[Sequence[int]]) -> list[PromptRows]:
            examples = [_whole_prompt(prompt) for prompt in prompts]
            rows = teacher.rows(examples)
            ends = np.cumsum([example.row_count for example in examples])[:-1]
            parts = {name: np.split(values, ends) for name, values in rows.items()}
            return [
                prompt_rows({name: part[n] for name, part in parts.items()})
                for n in range(len(examples))
            ]

        return measure_fingerprint(lambda p: score_all([p])[0], self._prompts, score_all)

    @cached_property
    def _measured(self) -> dict[str, Any]:
        return self._measure()

    def load(self, spec: StoreSpec, *, gpu: int | None = None) -> VllmTeacher:
        """The engine with the rows of a planned store; recognised again when it has to start anew.

        Raises:
            EngineError: it does not start.
            IdentityError: it computes another model than the store was planned with.
        """
        published = spec.identity["teacher"][FINGERPRINT]

        def recognise() -> None:
            _compare(published, self._measure())

        _compare(published, self._measured)
        self._live.recognise = recognise
        capture = {**spec.identity["capture"], "kind": spec.kind}
        num_ids = min(spec.vocab_size, self.num_ids)
        return VllmTeacher(self._live, capture, num_ids)


def _compare(published: Any, asked: Any) -> None:
    """Recognise an engine by its fingerprint.

    Raises:
        IdentityError: it differs.
    """
    pair = {FINGERPRINT: published}, {FINGERPRINT: asked}
    for _, allowed, found in identity_differences(*pair):
        raise IdentityError(
            f"--backend vllm: the engine computes another model than the store was planned with; "
            f"its teacher.fingerprint is {found}; expected {allowed}; run it with the same "
            "checkpoint, dtype and kernels, or pass another --store"
        )


def _whole_prompt(prompt: Sequence[int]) -> ShardExample:
    """A prompt of which every token but the first is a row."""
    ids = np.asarray(prompt, np.uint32)
    return ShardExample(0, ids, np.ones(len(ids), np.uint8), 0, len(ids) - 1)


def _check_public(config: PrecomputeConfig, release: str) -> None:
    """Warn that this release's own log-probabilities are stored.

    Raises:
        UsageError: draws were asked for, which need the whole distribution.
    """
    if config.sample is not None:
        raise UsageError(
            f"--sample {config.sample}: vllm {release} is not a tested release, and its own "
            "log-probabilities are no whole distribution; expected a tested one; run pip install "
            "'caskd[vllm]', or pass --top-k"
        )
    tell(
        f"warning: vllm {release} is not a tested release: rows are its own log-probabilities of "
        "prompts (capture.values log-probs) in place of logits; for those run pip install "
        "'caskd[vllm]'",
        file=sys.stderr,
    )
