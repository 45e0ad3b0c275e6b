"""A router of tokens: a small network that decides where a large model should choose the token.

Architecture of R2R (arXiv 2505.21600, section 4) with widths in proportion to the student: the
state before the head, the largest logits and the embedding of the likeliest token are joined, and
residual blocks end in one logit. The embedding is the student's own, so that a router belongs to
one student.

Legend: N rows, H hidden, E embedding, K largest logits, W width of the router, V vocabulary.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from caskd.models.decoding.loaded_model import LoadedModel
from caskd.models.model_parts import embedding_of, output_head, refusal
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import StrangeFileError, files, read_json_object, read_regular

FORMAT = "caskd-token-router"
VERSION = 1
DESCRIPTION = "router.json"
WEIGHTS = "router.safetensors"
_QUESTIONS = "questions"
_MOST_BYTES = 4 << 30
_NUM_LOGITS = 100
_NUM_BLOCKS = 6
_EXPANSION = 4
_DROPOUT = 0.1
_LEAST_WIDTH, _MOST_WIDTH = 32, 1024
_MOST_SIZE, _MOST_BLOCKS = 1 << 20, 64


@dataclass(frozen=True)
class RouterSizes:
    """Sizes of a router."""

    hidden: int
    """H of the student."""
    embedding: int
    """E of the student."""
    logits: int
    """K."""
    width: int
    """W: in R2R 1024 for a student of 1536."""
    blocks: int = _NUM_BLOCKS


class _Block(nn.Module):
    """x + MLP(LayerNorm(x)), [N, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, _EXPANSION * width)
        self.down = nn.Linear(_EXPANSION * width, width)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(nn.functional.gelu(self.up(self.norm(x))))
        outer: Tensor = x + self.dropout(self.down(inner))
        return outer


class RouterNetwork(nn.Module):
    """The network: one logit for each row."""

    def __init__(self, sizes: RouterSizes) -> None:
        super().__init__()
        self.of_logits = nn.Linear(sizes.logits, sizes.embedding)
        self.join = nn.Linear(sizes.hidden + 2 * sizes.embedding, sizes.width)
        self.enter = nn.Linear(sizes.width, sizes.width)
        self.blocks = nn.ModuleList(_Block(sizes.width) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width)
        self.out = nn.Linear(sizes.width, 1)

    def forward(self, hidden: Tensor, top: Tensor, embedded: Tensor) -> Tensor:
        """Logits [N] of hidden [N, H], the largest logits [N, K] and embeddings [N, E]."""
        x = self.join(torch.cat((hidden, self.of_logits(top), embedded), dim=-1))
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out(self.norm(x))[:, 0]
        return logits


@dataclass(frozen=True, eq=False)
class RouterReader:
    """Reads the inputs of a router from the rows of one student."""

    embedding: nn.Module
    sizes: RouterSizes
    vocab_size: int

    def inputs(self, hidden: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs in float32: hidden [N, H], the largest logits [N, K], the likeliest token [N].

        Args:
            hidden: [N, H] what the student's head receives.
            logits: [N, V] or more columns, which are not read.
        """
        own = logits[:, : self.vocab_size].float()
        return hidden.float(), own.topk(self.sizes.logits, dim=-1).values, own.argmax(dim=-1)

    def embedded(self, tokens: Tensor) -> Tensor:
        """Embeddings [N, E] of tokens [N], in float32."""
        found: Tensor = self.embedding(tokens)
        return found.float()


def router_reader(loaded: LoadedModel, hidden: int, flag: str) -> RouterReader:
    """The reader of a student's rows, with the sizes of a router that belongs to it.

    Raises:
        UsageError: the student has no embedding of token ids.
    """
    embedding = embedding_of(loaded.model)
    if embedding is None:
        raise refusal(loaded.model, flag, "has no embedding of token ids")
    vocab_size = len(vocabulary_of(loaded))
    width = min(_MOST_WIDTH, max(_LEAST_WIDTH, 2 * hidden // 3 // 8 * 8))
    sizes = RouterSizes(hidden, int(embedding.weight.shape[1]), min(_NUM_LOGITS, vocab_size), width)
    return RouterReader(embedding, sizes, vocab_size)


def vocabulary_of(loaded: LoadedModel) -> list[bytes]:
    """The vocabulary without the CALL token, which is its last."""
    return token_bytes(loaded.tokenizer)[: loaded.call_id]


@dataclass(frozen=True, eq=False)
class TokenRouter:
    """A fitted router.

    The description holds label, threshold, recall and the identities of student and store.
    """

    network: RouterNetwork
    sizes: RouterSizes
    description: Mapping[str, Any]
    questions: npt.NDArray[np.int64]
    """Digests of the questions that network and threshold were fitted on, in order."""

    @property
    def threshold(self) -> float:
        """The large model chooses from this probability on."""
        return float(self.description["threshold"])

    @property
    def num_parameters(self) -> int:
        """Parameters of the network; the embedding is the student's."""
        return sum(one.numel() for one in self.network.parameters())

    def scorer(self, loaded: LoadedModel, flag: str) -> "RouterScorer":
        """The router on its student.

        Raises:
            IdentityError: the model is not the student that the router was fitted for.
        """
        own, fitted = student_identity(loaded), self.description["student"]
        for name, words in (("weights_digest", "weights"), ("vocab_digest", "vocabulary")):
            if own[name] != fitted[name]:
                raise IdentityError(
                    f"{flag}: was fitted for {fitted['name']} ({words} {str(fitted[name])[:12]}), "
                    f"not for {own['name']} ({words} {str(own[name])[:12]}); expected the same "
                    "student; pass that one, or run caskd router fit for this one"
                )
        head = output_head(loaded.model)
        if head is None:
            raise refusal(loaded.model, flag, "has no separate body and head")
        weight: Tensor = head.weight  # type: ignore[assignment]
        hidden = int(weight.shape[1])
        reader = router_reader(loaded, hidden, flag)
        found = (reader.sizes.hidden, reader.sizes.embedding, reader.sizes.logits)
        fitted_on = (self.sizes.hidden, self.sizes.embedding, self.sizes.logits)
        if found != fitted_on:
            raise _strange(
                flag,
                f"reads hidden size, embedding size and largest logits {fitted_on}, and those of "
                f"{own['name']} are {found}",
            )
        return RouterScorer(self.network.to(loaded.model.device), reader)

    def save(self, folder: Path) -> None:
        """Write the two files; the description last, which makes the router complete."""
        tensors = {name: x.cpu().contiguous() for name, x in self.network.state_dict().items()}
        content = save({**tensors, _QUESTIONS: torch.from_numpy(self.questions)})
        described = {
            "format": FORMAT,
            "version": VERSION,
            **self.description,
            "sizes": asdict(self.sizes),
            "digest": hashlib.sha256(content).hexdigest(),
        }
        files.replace_file(folder / WEIGHTS, content)
        text = json.dumps(described, indent=2, allow_nan=False) + "\n"
        files.replace_file(folder / DESCRIPTION, text.encode())


@dataclass(frozen=True, eq=False)
class RouterScorer:
    """A router bound to its student."""

    network: RouterNetwork
    reader: RouterReader

    def __call__(self, hidden: Tensor | None, logits: Tensor) -> Tensor:
        """Probability [N] that the large model should choose, from hidden [N, H], logits [N, V]."""
        assert hidden is not None
        states, top, tokens = self.reader.inputs(hidden, logits)
        found: Tensor = self.network(states, top, self.reader.embedded(tokens))
        return found.sigmoid()


def student_identity(loaded: LoadedModel) -> dict[str, Any]:
    """What binds a router to a student: name and digests of weights and vocabulary."""
    return {
        "name": loaded.identity["name"],
        "weights_digest": loaded.identity["weights_digest"],
        "vocab_digest": vocab_digest(vocabulary_of(loaded)),
    }


def open_router(folder: str, flag: str) -> TokenRouter:
    """Read a router that `caskd router fit` wrote.

    Args:
        folder: its folder.
        flag: the option that named it and its value, for errors.

    Raises:
        UsageError: the folder holds no whole router.
    """
    path = Path(folder)
    try:
        described = read_json_object(path / DESCRIPTION)
        content = read_regular(path / WEIGHTS, _MOST_BYTES)
    except FileNotFoundError as error:
        raise _strange(flag, f"has no {Path(error.filename).name}") from None
    except (OSError, StrangeFileError) as error:
        raise _strange(flag, str(error)) from None
    if described.get("format") != FORMAT or described.get("version") != VERSION:
        raise _strange(flag, f"{DESCRIPTION} is not of format {FORMAT} {VERSION}")
    if described.get("digest") != hashlib.sha256(content).hexdigest():
        raise _strange(flag, f"{WEIGHTS} is not the file that {DESCRIPTION} describes")
    try:
        sizes = RouterSizes(**described["sizes"])
        threshold = float(described["threshold"])
        float(described["test"]["routed_share"])
        names = {described["student"][name] for name in ("weights_digest", "vocab_digest")}
        if not all(type(n) is int and 0 < n <= _MOST_SIZE for n in asdict(sizes).values()):
            raise ValueError("sizes out of bounds")
        if sizes.blocks > _MOST_BLOCKS:
            raise ValueError("too many blocks")
        names |= {described["label"], described["store"]["digest"]}
        if not 0.0 <= threshold <= 1.0 or not all(isinstance(name, str) for name in names):
            raise ValueError("threshold or digests out of bounds")
        tensors = load(content)
        questions = tensors.pop(_QUESTIONS).numpy().astype(np.int64)
        with torch.device("meta"):
            network = RouterNetwork(sizes)
        network.load_state_dict(tensors, assign=True)
        if any(x.dtype != torch.float32 for x in tensors.values()):
            raise TypeError("weights are not float32")
    except (
        KeyError,
        TypeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise _strange(flag, f"{type(error).__name__} in its content") from None
    return TokenRouter(network.eval().requires_grad_(False), sizes, described, questions)


def _strange(flag: str, problem: str) -> UsageError:
    return UsageError(
        f"{flag}: {problem}; expected a folder that caskd router fit wrote; pass another one, or "
        "fit the router again"
    )
