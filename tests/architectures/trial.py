"""One class of transformers through every door of caskd, beside the model's own full logits.

The references here share no code with caskd: the model's own forward on one example at a time, in
the dtype of its weights, and autograd over its full logits.

Legend: N rows, V columns of the model, T tokens of an example.
"""

import contextlib
import inspect
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.tiny import ALPHABET, ragged_records, tiny_tokenizer, write_jsonl
from torch import Tensor
from transformers import AutoModelForCausalLM

from caskd.eval import PredictConfig, predict
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import TeacherStore
from caskd.store.errors import CaskdError
from caskd.train import TrainConfig, train
from caskd.train.run.exporter import export

from architectures.tiny_configs import tiny_config

DOORS = ("capture", "training", "export", "prediction")
EXACT = "exact"
RECORDS = ragged_records(8, seed=5)
TOP_K = 8
NEW_TOKENS = 4


@dataclass(frozen=True)
class Tolerance:
    """Largest differences, relative to the largest logit or to the value."""

    logits: float
    loss: float


FLOAT32, BFLOAT16 = Tolerance(3e-5, 1e-4), Tolerance(2e-2, 5e-2)


class WrongError(AssertionError):
    """A number of caskd is not the model's own."""


def build(model_type: str, folder: Path, *, dtype: str = "float32", **changes: Any) -> Any:
    """Write a tiny model of a type with its tokenizer; weights are so large that any of them
    that is left out shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
    randomise(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


@torch.no_grad()
def randomise(model: Any) -> None:
    """Give every weight, bias, norm and scalar of a model a value of its own."""
    stored = model.state_dict()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name not in stored or not value.is_floating_point():
            continue
        noise = torch.randn(value.shape) * 0.2
        value.copy_(noise if value.dim() > 1 else value + noise)


def examples() -> list[tuple[list[int], int]]:
    """Token ids and prompt length of each record, with the end token; written by hand."""
    ids = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *ALPHABET])}
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


class Trial:
    """The four doors of one model in a folder; each method returns or raises.

    Args:
        model: as `build` returned it.
        folder: of the model.
        store: of another teacher with the same tokenizer, to train on.
        work: empty; for what the doors write.
    """

    def __init__(
        self, model: Any, folder: Path, store: Path, work: Path, tolerance: Tolerance = FLOAT32
    ) -> None:
        self.folder = folder
        self.store = store
        self.work = work
        self.tolerance = tolerance
        self.model = model
        with torch.no_grad():
            self.rows = [self._rows(ids, start) for ids, start in examples()]

    def _rows(self, ids: Sequence[int], start: int) -> Tensor:
        """Logits [N, V] that predict the response of one example, alone."""
        accepted = inspect.signature(self.model.forward).parameters
        options = {"use_cache": False} if "use_cache" in accepted else {}
        logits = self.model(input_ids=torch.tensor([list(ids)]), **options).logits[0]
        return logits[start - 1 : len(ids) - 1].float()

    def capture(self) -> None:
        """A capture has the fields of the model's own logits."""
        store = capture(self.folder, self.work / "store")
        batch = store.read(np.arange(len(store)))
        whole = torch.cat(self.rows)[:, : store.spec.vocab_size]
        labels = torch.tensor([label for ids, start in examples() for label in ids[start:]])
        check_fields(batch, whole, labels, self.tolerance.logits)

    def training(self) -> None:
        """The loss and gradient norm of a step are those of autograd over full logits."""
        ours = self._step()
        store = TeacherStore.open(self.store)
        loss = self._full_loss(store.read(np.arange(len(store))))
        self.model.zero_grad()
        loss.backward()
        grads = [p.grad.double() for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([grad.pow(2).sum() for grad in grads]).sum().sqrt()
        for name, theirs in (("loss", loss), ("grad_norm", norm)):
            expect(ours[name], float(theirs.detach()), self.tolerance.loss, name)

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
        logits = torch.cat([self._rows(ids, start) for ids, start in examples()])
        logprobs = logits.log_softmax(dim=-1)
        labels = torch.tensor([label for ids, start in examples() for label in ids[start:]])
        own = -logprobs.gather(1, labels[:, None])[:, 0]
        masses = torch.tensor(np.exp(batch.topk_logits - batch.logsumexp[:, None]))
        chosen = logprobs.gather(1, torch.tensor(batch.topk_ids.astype(np.int64)))
        return (own / 2 - (masses * chosen).sum(1) / 2).mean()

    def export(self) -> None:
        """The exported model has the logits of the model, which the tiny step did not change."""
        out = export(self.work / "run", self.work / "exported")
        exported = AutoModelForCausalLM.from_pretrained(out).eval()
        trial, self.model = self.model, exported
        try:
            with torch.no_grad():
                rows = [self._rows(ids, start) for ids, start in examples()]
        finally:
            self.model = trial
        expect_close(torch.cat(rows), torch.cat(self.rows), self.tolerance.logits, "logits")

    def prediction(self) -> None:
        """Answers in a batch are those of generate() on each prompt alone."""
        data = write_jsonl(self.work / "prompts.jsonl", RECORDS[:4])
        answers = predict(
            PredictConfig(
                model=str(self.folder), data=(str(data),), out=str(self.work / "answers.parquet"),
                max_new_tokens=NEW_TOKENS, batch_size=4, device="cpu",
            )
        )  # fmt: skip
        assert answers is not None
        found = answers.columns
        pairs = zip(found["token_ids"].to_pylist(), found["token_logprobs"].to_pylist(), strict=True)
        for (ids, logprobs), (prompt, start) in zip(pairs, examples()[:4], strict=True):
            self._check_answer(prompt[:start], ids, logprobs)

    @torch.no_grad()
    def _check_answer(self, prompt: list[int], ids: list[int], logprobs: list[float]) -> None:
        steps: list[Tensor] = []

        def record(_: Tensor, scores: Tensor) -> Tensor:
            steps.append(scores[0].float())
            return scores

        output = self.model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=2, pad_token_id=0, logits_processor=[record],
        )  # fmt: skip
        alone = output[0, len(prompt) :].tolist()
        limit = 20 * self.tolerance.logits
        for step, (ours, theirs) in enumerate(zip(ids, alone, strict=False)):
            own = steps[step].log_softmax(dim=-1)
            scale = max(1.0, float(own.abs().max()))
            expect(logprobs[step], float(own[ours]), limit * scale, f"log-probability {step}", 1.0)
            if ours != theirs:
                if float(own.max() - own[ours]) > limit * scale:
                    raise WrongError(f"answer {ids} instead of {alone}")
                return  # a tie: what follows differs
        if len(ids) != len(alone):
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
    # The rank counts from 1 or 0, as the store's format says; both ends allow for ties.
    first = 0
    if bool(((rank < least + first) | (rank > most + first)).any()):
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


def expect(
    ours: float, theirs: float, limit: float, name: str, size: float | None = None
) -> None:
    """Raise unless a value is as close as the limit, relative to the larger one or to `size`."""
    if not abs(ours - theirs) <= limit * (abs(theirs) if size is None else size):
        raise WrongError(f"{name} is {ours:.6g}, not {theirs:.6g}")


def outcomes(trial: Trial) -> Iterator[tuple[str, str]]:
    """What each door did: `exact`, or `refused: ` and its line; what is wrong raises."""
    for door in DOORS:
        method: Callable[[], None] = getattr(trial, door)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                method()
        except CaskdError as error:
            yield door, f"refused: {error}"
        else:
            yield door, EXACT
