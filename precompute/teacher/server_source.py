"""The server backend: a served model's tokenizer and config, its limits, and its fingerprint."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from caskd.models import (
    config_digest,
    locate,
    open_config,
    open_tokenizer,
    quantization_of,
    weights_digest,
)
from caskd.models.engines import (
    ServedModel,
    ask_fingerprint,
    fixed_prompts,
    key_of,
    measure_fingerprint,
)
from caskd.precompute.checkpoints import FLAG, length_limit
from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.teacher.server_teacher import ServerTeacher
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.errors import IdentityError
from caskd.store.fingerprint import FINGERPRINT
from caskd.store.format import StoreSpec, identity_differences

FINGERPRINT_CELLS = 8


@dataclass(frozen=True)
class ServerSource:
    """A model behind URLs, of which this machine has the tokenizer and the config."""

    name: str
    folder: Path
    revision: str | None
    tokenizer: Any
    config: Any
    models: Sequence[ServedModel]
    num_ids: int
    """Ids that the model can read and predict, within the tokenizer's vocabulary."""
    vocab_digest: str
    concurrency: int

    @classmethod
    def find(cls, config: PrecomputeConfig) -> "ServerSource":
        """Open the tokenizer and the config, and ask the servers what they serve.

        Raises:
            UsageError: no such folder or model, or the server does not give k log-probabilities.
            IdentityError: a server's tokenizer gives other ids.
            ServerError: a server does not answer.
        """
        found = locate(config.teacher, FLAG, weights=False)
        model_config = open_config(found.folder, FLAG)
        tokenizer = open_tokenizer(found.folder, FLAG)
        vocab = token_bytes(tokenizer)
        num_columns = int(model_config.get_text_config().vocab_size)
        num_ids = min(len(vocab), num_columns)
        models = [
            ServedModel.open(
                url,
                num_ids,
                num_columns,
                served_model=config.served_model,
                concurrency=config.server_concurrency,
            )
            for url in dict.fromkeys(config.url)
        ]
        for model in models:
            assert config.kept_logits is not None, "check_numbers refuses --sample"
            if config.kept_logits <= num_ids:  # else --top-k is refused by its own range
                model.check_cells(config.kept_logits)
            model.check_tokenizer(tokenizer)
        return cls(
            name=found.name,
            folder=found.folder,
            revision=found.revision,
            tokenizer=tokenizer,
            config=model_config,
            models=models,
            num_ids=num_ids,
            vocab_digest=vocab_digest(vocab),
            concurrency=config.server_concurrency,
        )

    @cached_property
    def max_length(self) -> int | None:
        """Tokens that one example may have; a server also needs room for one token more."""
        own = length_limit(self.config.get_text_config(), self.tokenizer)
        limits = [model.limit - 1 for model in self.models if model.limit is not None]
        return min([*limits, *([own] if own is not None else [])], default=None)

    @property
    def weights(self) -> None:
        """Unknown: the server holds the weights."""

    def identity(self) -> dict[str, Any]:
        """Fields of `identity.teacher` in store.json, but for the fingerprint."""
        return {
            "name": self.name,
            "revision": self.revision,
            "weights_digest": weights_digest(self.folder) if self._has_weights() else None,
            "adapter": None,
            "config_digest": config_digest(self.folder),
        }

    def fingerprint(self) -> dict[str, Any]:
        """`identity.teacher.fingerprint` in store.json.

        Raises:
            IdentityError: the URLs serve different models.
        """
        return self._measured

    def _has_weights(self) -> bool:
        return any(self.folder.glob("*.safetensors"))

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return fixed_prompts(self.num_ids, key_of(self.vocab_digest))

    @cached_property
    def _measured(self) -> dict[str, Any]:
        first, *others = self.models
        measured = measure_fingerprint(
            lambda prompt: first.score(prompt, 1, FINGERPRINT_CELLS), self._prompts
        )
        for model in others:
            self._recognise(model, measured)
        return measured

    def _recognise(self, model: ServedModel, published: Any) -> None:
        """Ask a server for its fingerprint and compare.

        Raises:
            IdentityError: it differs.
        """
        asked = ask_fingerprint(
            lambda prompt: model.score(prompt, 1, FINGERPRINT_CELLS), self._prompts
        )
        pair = {FINGERPRINT: published}, {FINGERPRINT: asked}
        for _, allowed, found in identity_differences(*pair):
            raise IdentityError(
                f"--url {model.http.url}: serves another model than the store was planned with; "
                f"its teacher.fingerprint is {found}; expected {allowed}; serve that model again, "
                "or pass another --store"
            )

    def capture(self) -> dict[str, Any]:
        """Fields of `identity.capture` in store.json that the server decides."""
        return {
            "engine": "server",
            "engine_version": self.models[0].engine,
            "values": "log-probs",
            "rank": "capped",
            "tail": "complement",
            "load_dtype": "unknown",
            "logits_dtype": "unknown",
            "attention": None,
            "quantization": quantization_of(self.config),
            "temperature": 1.0,
        }

    def load(self, spec: StoreSpec, *, gpu: int | None = None) -> ServerTeacher:
        """Recognise the model at each URL, now and after every interruption.

        Raises:
            IdentityError: a URL serves another model than the store was planned with.
        """
        published = spec.identity["teacher"][FINGERPRINT]
        for model in self.models:

            def recognise(model: ServedModel = model) -> None:
                self._recognise(model, published)

            model.http.interrupted.clear()
            recognise()
            model.recognise = recognise
        return ServerTeacher(
            self.models,
            top_k=spec.top_k,
            min_mass=spec.identity["capture"]["min_mass"],
            concurrency=self.concurrency,
        )
