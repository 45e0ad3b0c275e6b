"""A student's next-token predictions on a store's own tokens, beside what the teacher said there.

The body runs on whole examples, the head on the rows alone and tile by tile: no [rows, vocabulary]
tensor is held.

Legend: B examples of a batch, L padded length, N rows, V the student's own columns, H hidden.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.eval.inference import LoadedModel
from caskd.store import StoreBatch, StoreSpec, TeacherStore
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import progress

FloatArray = npt.NDArray[np.float64]

TILE_ROWS = 256
TOKEN_BUDGET = 4096
_FIELDS = ("argmax", "label_logit", "logsumexp", "num_kept")


@dataclass(frozen=True, eq=False)
class ForcedRows:
    """One model on the rows of a store: arrays [N], in the order of the examples."""

    right: FloatArray
    """1.0 where the likeliest token is the label, else 0.0."""
    label_logprob: FloatArray
    best_logprob: FloatArray
    """Log-probability of the likeliest token: all that is known where nobody knows the label."""
    margin: FloatArray
    """That minus the log-probability of the second likeliest."""
    entropy: FloatArray
    """Of the distribution over V, in nats."""


@dataclass(frozen=True, eq=False)
class StoreRows:
    """What a store says of its rows: arrays [N], in the order of the examples."""

    examples: npt.NDArray[np.int64]
    """Example that each row belongs to."""
    tasks: npt.NDArray[np.int64]
    """Place of its task among the store's."""
    right: FloatArray
    """1.0 where the teacher's likeliest token is the label, else 0.0."""
    label_logprob: FloatArray


def store_rows(store: TeacherStore, limit: int | None) -> StoreRows:
    """The teacher's side of every row that it has.

    Args:
        store: with a top-k.
        limit: number of examples, from the first on; all by default.

    Raises:
        UsageError: the store holds draws, which do not tell the teacher's likeliest token, or no
            row.
    """
    if store.spec.kind != "topk":
        raise UsageError(
            f"--next-token {store.name}: a store of kind {store.spec.kind!r} does not say the "
            "teacher's likeliest token, expected kind 'topk'"
        )
    chosen = _with_rows(store, limit)
    if not chosen.size:
        raise UsageError(f"--next-token {store.name}: no example has a row, expected some")
    batch = store.read(chosen, fields=_FIELDS)
    known = batch.column("num_kept") > 0  # else the teacher was not finite there
    examples = np.repeat(chosen, np.diff(batch.row_offsets))[known]
    return StoreRows(
        examples=examples,
        tasks=store.index.task[examples].astype(np.int64),
        right=(batch.column("argmax") == batch.labels)[known].astype(np.float64),
        label_logprob=(batch.column("label_logit") - batch.column("logsumexp"))[known].astype(
            np.float64
        ),
    )


def student_rows(loaded: LoadedModel, store: TeacherStore, limit: int | None) -> ForcedRows:
    """The student's side of the same rows.

    Raises:
        IdentityError: the student's vocabulary is not the store's.
        UsageError: an example is longer than the student takes, or its architecture is not known.
    """
    check_vocabulary(loaded, store.spec)
    chosen = _with_rows(store, limit)
    lengths = store.token_counts()[chosen]
    most = loaded.max_positions
    if most is not None and lengths.max() > most:
        raise UsageError(
            f"example {chosen[lengths.argmax()]} has {lengths.max():,} tokens, but "
            f"{loaded.identity['name']} takes {most:,}; expected a student of the store's length"
        )
    head = Head(loaded.model)
    counts = store.row_counts()[chosen]
    starts = np.concatenate(([0], np.cumsum(counts)))
    values = np.empty((len(fields(ForcedRows)), starts[-1]))
    known = np.empty(starts[-1], dtype=bool)
    with progress(loaded.identity["name"], int(starts[-1]), "rows") as shown:
        for places in _batches(lengths):
            batch = store.read(chosen[places], fields=("num_kept",))
            rows = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in places])
            values[:, rows] = head.rows(batch)
            known[rows] = batch.column("num_kept") > 0
            shown.advance(len(rows))
    return ForcedRows(*values[:, known])


def check_vocabulary(loaded: LoadedModel, spec: StoreSpec) -> None:
    """Refuse a student whose token ids mean something else than the store's.

    Raises:
        IdentityError: they do.
    """
    own = vocab_digest(token_bytes(loaded.tokenizer))
    if own != spec.vocab_digest:
        raise IdentityError(
            f"--student {loaded.identity['name']}: vocabulary digest {own[:12]}, but the store has "
            f"{spec.vocab_digest[:12]} (teacher {spec.teacher}); expected a student with the "
            "teacher's tokenizer"
        )


class Head:
    """The two halves of a causal LM.

    Raises:
        UsageError: the model has no separate body and head, or does something unknown to its
            logits.
    """

    def __init__(self, model: Any) -> None:
        body, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
        if body is None or body is model or head is None:
            raise _unknown(model, "has no separate body and head")
        self._model, self._body, self._head = model, body, head
        self._config = model.config.get_text_config()
        self._takes_cache = "use_cache" in inspect.signature(body.forward).parameters
        self._check()

    @torch.inference_mode()
    def rows(self, batch: StoreBatch) -> FloatArray:
        """Values [5, N] of the fields of `ForcedRows` for the rows of some examples."""
        hidden = self._hidden(*_padded(batch)).flatten(0, 1)
        longest = int(np.diff(batch.token_offsets).max())
        example = np.repeat(np.arange(len(batch.example_indices)), np.diff(batch.row_offsets))
        places = torch.from_numpy(example * longest + batch.logit_positions).to(hidden.device)
        labels = torch.from_numpy(batch.labels.astype(np.int64)).to(hidden.device)
        tiles = []
        for start in range(0, len(places), TILE_ROWS):
            part = slice(start, start + TILE_ROWS)
            tiles.append(_tile_values(self._logits(hidden[places[part]]), labels[part]).cpu())
        return np.asarray(torch.cat(tiles, dim=1).double().numpy())

    def _hidden(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L, H]"""
        device = self._model.device
        options = {"use_cache": False} if self._takes_cache else {}
        output = self._body(
            input_ids=input_ids.to(device), attention_mask=mask.to(device), **options
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """[n, V] in float32, with what Granite, Cohere and Gemma do after their head."""
        logits: Tensor = self._head(hidden).float()
        if (scaling := getattr(self._config, "logits_scaling", None)) is not None:
            logits = logits / scaling
        if (scale := getattr(self._config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (cap := getattr(self._config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.inference_mode()
    def _check(self) -> None:
        """Hold the two halves against the whole model on a few tokens."""
        ids = torch.arange(8, device=self._model.device)[None]
        mask = torch.ones_like(ids)
        whole = self._model(input_ids=ids, attention_mask=mask).logits[0].float()
        error = float((whole - self._logits(self._hidden(ids, mask)[0])).abs().max())
        exact = self._model.dtype == torch.float32
        if error > (1e-4 if exact else 5e-2) * max(float(whole.abs().max()), 1.0):
            raise _unknown(self._model, f"gives other logits as a whole (off by {error:.3g})")


def _tile_values(logits: Tensor, labels: Tensor) -> Tensor:
    """Values [5, n] of the fields of `ForcedRows` from logits [n, V] and labels [n]."""
    best, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
    at_label = logits.gather(-1, labels[:, None])[:, 0]
    right = at_label == best
    if bool((best == second).any()):  # ties go to the lowest id, as in a store
        lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
        right &= ~((logits == best[:, None]) & lower).any(dim=-1)
    total = logits.logsumexp(dim=-1)
    entropy = torch.special.entr((logits - total[:, None]).exp()).sum(dim=-1)
    return torch.stack((right.float(), at_label - total, best - total, best - second, entropy))


def _padded(batch: StoreBatch) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, L], padded on the right."""
    lengths = np.diff(batch.token_offsets)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = batch.token_ids
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def _with_rows(store: TeacherStore, limit: int | None) -> npt.NDArray[np.int64]:
    return np.flatnonzero(store.row_counts()[:limit]).astype(np.int64)


def _batches(lengths: npt.NDArray[np.int32]) -> Iterator[list[int]]:
    """Places of the examples of each batch, longest first, within the token budget."""
    batch: list[int] = []
    for place in np.argsort(-lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[batch[0]] > TOKEN_BUDGET:
            yield batch
            batch = []
        batch.append(place)
    yield batch


def _unknown(model: Any, what: str) -> UsageError:
    return UsageError(
        f"student architecture {type(model).__name__} {what}; expected a causal language model: "
        "give another --student"
    )
