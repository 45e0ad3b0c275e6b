"""One class of transformers through every door of caskd, beside the model's own full logits.

The references here share no code with caskd: the model's own forward on one example at a time, in
the dtype of its weights, and autograd over its full logits.

Legend: N rows, V columns of the model, T tokens of an example.
"""

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.tiny import ALPHABET, SPECIAL, ragged_records, write_jsonl
from torch import Tensor
from transformers import AutoModelForCausalLM

from architectures.tiny_models import NotBuiltError, build, no_cache
from caskd.eval import PredictConfig, predict
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train import TrainConfig, train
from caskd.train.run.exporter import export

DOORS = ("capture", "training", "export", "prediction")
EXACT, REFUSED, NOT_BUILT, NOTHING = "exact", "refused", "not built", "-"
RECORDS = ragged_records(8, seed=5)
TOP_K = 8
NEW_TOKENS = 4
NUM_ANSWERS = 4
FLOAT32, BFLOAT16 = 3e-5, 2e-2
"""Largest difference of logits, relative to the largest logit, by the dtype of the weights."""
LOSS = 1e-4
"""Largest relative difference of a loss or of a gradient norm, both in float32."""


class WrongError(AssertionError):
    """A number of caskd is not the model's own."""


def examples() -> list[tuple[list[int], int]]:
    """Token ids and prompt length of each record, with the end token; written by hand."""
    ids = {token: index for index, token in enumerate([*SPECIAL, *ALPHABET])}
    return [
        ([ids[c] for c in record["prompt"] + record["response"]] + [2], len(record["prompt"]))
        for record in RECORDS
    ]


def capture(teacher: Path, store: Path) -> TeacherStore:
    """A store of the records, captured on the CPU in batches of several examples."""
    data = write_jsonl(store.with_name("data.jsonl"), RECORDS)
    found = precompute(
        PrecomputeConfig(
            teacher=str(teacher), data=(str(data),), store=str(store), top_k=TOP_K, shard_rows=128,
            token_budget=200, max_length=64, device="cpu", encoding="exact",
        )
    )  # fmt: skip
    assert found is not None
    return found


def shared_store(folder: Path) -> Path:
    """A store of a tiny Llama, to train every model on."""
    build("llama", folder / "teacher")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        capture(folder / "teacher", folder / "store")
    return folder / "store"


def full_logits(model: Any) -> Tensor:
    """Logits [N, V] that predict the responses of all examples, one example at a time."""
    parts = []
    for ids, start in examples():
        logits = model(input_ids=torch.tensor([ids]), **no_cache(model)).logits[0]
        parts.append(logits[start - 1 : len(ids) - 1].float())
    return torch.cat(parts)


def all_labels() -> Tensor:
    """[N] the response tokens of all examples."""
    return torch.tensor([label for ids, start in examples() for label in ids[start:]])


class Trial:
    """The four doors of one model in a folder; each method returns or raises.

    Args:
        model: as `build` returned it, in the dtype of its files.
        folder: of the model.
        store: of another teacher with the same tokenizer, to train on.
        work: empty; for what the doors write.
    """

    def __init__(self, model: Any, folder: Path, store: Path, work: Path, tolerance: float) -> None:
        self.folder = folder
        self.store = store
        self.work = work
        self.tolerance = tolerance
        self.model = model
        # A student computes in float32, whatever the dtype of its files.
        self.student = model
        if model.dtype != torch.float32:
            self.student = type(model).from_pretrained(folder, dtype="float32").eval()

    def capture(self) -> None:
        """A capture has the fields of the model's own logits."""
        store = capture(self.folder, self.work / "store")
        batch = store.read(np.arange(len(store)))
        with torch.no_grad():
            whole = full_logits(self.model)[:, : store.spec.vocab_size]
        check_fields(batch, whole, all_labels(), self.tolerance)

    def training(self) -> None:
        """The loss and gradient norm of a step are those of autograd over full logits."""
        ours = self._step()
        store = TeacherStore.open(self.store)
        loss = self._full_loss(store.read(np.arange(len(store))))
        loss.backward()
        grads = [p.grad.double() for p in self.student.parameters() if p.grad is not None]
        norm = torch.stack([grad.pow(2).sum() for grad in grads]).sum().sqrt()
        for name, theirs in (("loss", loss), ("grad_norm", norm)):
            expect(ours[name], float(theirs.detach()), LOSS, name)

    def _step(self) -> dict[str, Any]:
        run = self.work / "run"
        # A step so small that the weights stay: the export is compared with the model.
        train(
            TrainConfig(
                store=(str(self.store),), student=str(self.folder), out=run, steps=1,
                global_batch_size=len(RECORDS), micro_batch_size=4, lr=1e-30, objective="dist",
                tail="drop", dtype="float32", schedule="constant", warmup_steps=0,
            )
        )  # fmt: skip
        metrics: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        return metrics

    def _full_loss(self, batch: Any) -> Tensor:
        """Half the label's cross-entropy and half that of the stored teacher, per row."""
        logprobs = full_logits(self.student).log_softmax(dim=-1)
        own = -logprobs.gather(1, all_labels()[:, None])[:, 0]
        masses = torch.tensor(np.exp(batch.topk_logits - batch.logsumexp[:, None]))
        chosen = logprobs.gather(1, torch.tensor(batch.topk_ids.astype(np.int64)))
        return (own / 2 - (masses * chosen).sum(1) / 2).mean()

    def export(self) -> None:
        """The exported model has the logits of the model, which the tiny step did not change."""
        out = export(self.work / "run", self.work / "exported")
        exported = AutoModelForCausalLM.from_pretrained(out).eval()
        with torch.no_grad():
            ours, theirs = full_logits(exported), full_logits(self.student)
        expect_close(ours, theirs, FLOAT32, "logits")

    def prediction(self) -> None:
        """Answers in a batch are those of generate() on each prompt alone."""
        data = write_jsonl(self.work / "prompts.jsonl", RECORDS[:NUM_ANSWERS])
        answers = predict(
            PredictConfig(
                model=str(self.folder), data=(str(data),), out=str(self.work / "answers.parquet"),
                max_new_tokens=NEW_TOKENS, batch_size=4, device="cpu",
            )
        )  # fmt: skip
        assert answers is not None
        found = (answers.columns[name].to_pylist() for name in ("token_ids", "token_logprobs"))
        for ids, logprobs, (prompt, start) in zip(*found, examples()[:NUM_ANSWERS], strict=True):
            self._check_answer(prompt[:start], ids, logprobs)

    @torch.no_grad()
    def _check_answer(self, prompt: list[int], ids: list[int], logprobs: list[float]) -> None:
        steps: list[Tensor] = []

        def record(_: Tensor, scores: Tensor) -> Tensor:
            steps.append(scores[0].float().log_softmax(dim=-1))
            return scores

        output = self.model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=2, pad_token_id=0, logits_processor=[record],
        )  # fmt: skip
        alone = output[0, len(prompt) :].tolist()
        for ours, theirs, logprob, own in zip(ids, alone, logprobs, steps, strict=False):
            limit = self.tolerance * 20 * max(1.0, float(own.abs().max()))
            if abs(logprob - float(own[ours])) > limit:
                raise WrongError(f"log-probability {logprob:.4g} instead of {float(own[ours]):.4g}")
            if ours != theirs and float(own.max() - own[ours]) <= limit:
                return  # equally likely tokens: what follows differs
        if ids != alone:
            raise WrongError(f"answer {ids} instead of {alone}")


def check_fields(batch: Any, whole: Tensor, labels: Tensor, limit: float) -> None:
    """Compare every row field with whole logits [N, V]; ties may be broken either way."""
    size = max(1.0, float(whole.abs().max()))
    near = limit * size
    top = whole.topk(TOP_K, dim=1).values
    expect_close(torch.tensor(batch.topk_logits), top, limit, "topk_logits")
    ids = torch.tensor(batch.topk_ids.astype(np.int64))
    if any(len(set(row)) < TOP_K for row in ids.tolist()):
        raise WrongError("topk_ids repeat")
    expect_close(whole.gather(1, ids), top, limit, "topk_ids")
    lse = whole.logsumexp(1)
    expect_close(torch.tensor(batch.logsumexp), lse, limit, "logsumexp")
    label = whole.gather(1, labels[:, None])
    expect_close(torch.tensor(batch.label_logit), label[:, 0], limit, "label_logit")
    least, most = (whole > label + near).sum(1), (whole >= label - near).sum(1) - 1
    rank = torch.tensor(batch.label_rank.astype(np.int64))
    if bool(((rank < least) | (rank > most)).any()):
        raise WrongError(f"label_rank {rank.tolist()[:8]} instead of {least.tolist()[:8]}")
    best = whole.gather(1, torch.tensor(batch.argmax.astype(np.int64))[:, None])[:, 0]
    expect_close(best, whole.max(1).values, limit, "argmax")
    tail = 1 - (top - lse[:, None]).double().exp().sum(1)
    expect_close(torch.tensor(batch.tail_mass).double(), tail, limit * size, "tail_mass")


def expect_close(ours: Tensor, theirs: Tensor, limit: float, name: str) -> None:
    """Raise unless all values are finite and as close as the limit, relative to the largest."""
    if ours.shape != theirs.shape:
        raise WrongError(f"{name} has shape {tuple(ours.shape)}, not {tuple(theirs.shape)}")
    error, size = float((ours - theirs).abs().max()), max(1.0, float(theirs.abs().max()))
    if not error <= limit * size:
        raise WrongError(f"{name} differs by {error:.3g} of {size:.3g}")


def expect(ours: float, theirs: float, limit: float, name: str) -> None:
    """Raise unless a value is as close as the limit, relative to the other."""
    if not abs(ours - theirs) <= limit * abs(theirs):
        raise WrongError(f"{name} is {ours:.6g}, not {theirs:.6g}")


@dataclass(frozen=True)
class Outcome:
    """What one door did with a model."""

    what: str
    """`exact`, `refused`, `not built`, or a dash where an earlier door refused."""
    reason: str = ""


def outcomes(
    model_type: str,
    store: Path,
    folder: Path,
    *,
    dtype: str = "float32",
    prepare: Callable[[Any], None] | None = None,
    **changes: Any,
) -> list[Outcome]:
    """What each of `DOORS` does with a model; a wrong number raises.

    Args:
        model_type: of the model.
        store: to train on, of another teacher with the same tokenizer.
        folder: new; for all files.
        dtype: of the weights.
        prepare: changes the model before it is written.
        changes: of its config.
    """
    try:
        model = build(model_type, folder / "model", dtype=dtype, prepare=prepare, **changes)
    except NotBuiltError as error:
        return [Outcome(NOT_BUILT, str(error))] * len(DOORS)
    (folder / "work").mkdir()
    tolerance = FLOAT32 if dtype == "float32" else BFLOAT16
    trial = Trial(model, folder / "model", store, folder / "work", tolerance)
    found: list[Outcome] = []
    for door in DOORS:
        if door == "export" and found[-1].what != EXACT:
            found.append(Outcome(NOTHING))
        else:
            found.append(_outcome(getattr(trial, door)))
    return found


def _outcome(door: Callable[[], None]) -> Outcome:
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            door()
    except UsageError as error:
        return Outcome(REFUSED, _problem(str(error)))
    return Outcome(EXACT)


def _problem(message: str) -> str:
    """What a refusal says is wrong, without the option, the model's path and what to do."""
    problem = message.split("; expected")[0]
    return re.sub(r"^--\w+( [\w/.-]+)?( \(\w+\))?: ", "", problem)
