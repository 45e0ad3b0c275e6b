"""Distances of the fingerprint of a served model: what it tells apart, in float32 and bfloat16.

    python benchmarks/bench_fingerprint.py --model HuggingFaceTB/SmolLM2-135M

The published fingerprint is measured as `caskd plan --backend server` does: one prompt at a time,
and all in a batch. Then the model is asked again: restarted, in a batch, in the other dtype,
rounded to 8 and 4 bits (each row of a matrix with its own scale), and after one epoch of LoRA on
additions.
Writes benchmarks/results/fingerprint.csv; `apart` is whether a capture would stop.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from store_rows import setting, write_table

from caskd.models import open_model, open_tokenizer
from caskd.models.engines import ask_fingerprint, fixed_prompts, key_of, measure_fingerprint
from caskd.models.engines.prompt_rows import PromptRows, ordered_rows
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.fingerprint import FINGERPRINT, fingerprint_distance
from caskd.store.format import identity_differences

CELLS, LORA_RECORDS, LORA_RANK, LORA_RATE = 8, 48, 8, 2e-4
Model = Any


class Scorer:
    """Rows of a model, as a server answers: alone, then from one batch of all prompts."""

    def __init__(self, model: Model, prompts: list[list[int]], alone: int) -> None:
        self.model, self.left, self.num_ids = model, alone, model.config.vocab_size
        self.prompts = prompts
        self.together: Any = None

    def __call__(self, tokens: Any) -> PromptRows:
        if self.left:
            self.left -= 1
            table = self.table([list(tokens)])[0]
        else:
            if self.together is None:
                self.together = self.table(self.prompts)
            table = self.together[self.prompts.index(list(tokens))]
        values, ids = table[:-1].topk(CELLS)
        rows = [
            {label: float(row[label])} | dict(zip(i.tolist(), v.tolist(), strict=True))
            for row, label, v, i in zip(table, tokens[1:], values, ids, strict=False)
        ]
        return ordered_rows(rows, tokens[1:], CELLS, self.num_ids)

    @torch.inference_mode()
    def table(self, prompts: list[list[int]]) -> Any:
        """Log-probabilities [P, T, V]."""
        return self.model(input_ids=torch.tensor(prompts)).logits.float().log_softmax(dim=-1)


def rounded(model: Model, bits: int) -> Model:
    """A copy whose matrices are rounded to so many bits."""
    copied, steps = copy.deepcopy(model), 2 ** (bits - 1) - 1
    with torch.no_grad():
        for weight in copied.parameters():
            if weight.dim() == 2:
                scale = (weight.abs().amax(dim=1, keepdim=True) / steps).clamp(min=1e-12)
                weight.copy_((weight / scale).round() * scale)
    return copied


def lora_tuned(model: Model, tokenizer: Any) -> Model:
    """A copy after one epoch of LoRA on additions, eight at a time."""
    torch.manual_seed(0)
    options = peft.LoraConfig(r=LORA_RANK, target_modules=["q_proj", "v_proj"])
    tuned = peft.get_peft_model(copy.deepcopy(model).float(), options)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=LORA_RATE)
    for start in range(0, LORA_RECORDS, 8):
        lines = [f"{n * 7} plus {n * 13} is {n * 20}." for n in range(start, start + 8)]
        for line in lines:
            ids = torch.tensor([tokenizer.encode(line)])
            (tuned(input_ids=ids, labels=ids).loss / len(lines)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned.merge_and_unload().to(model.dtype).eval()


def lines(folder: str, dtypes: list[str]) -> Iterator[dict[str, Any]]:
    """The distances of each change from the published fingerprint, by dtype."""
    tokenizer = open_tokenizer(folder, "--model")
    vocab = token_bytes(tokenizer)
    for dtype in dtypes:
        other = "bfloat16" if dtype == "float32" else "float32"
        model = open_model(folder, "--model", dtype=dtype).eval()
        num_ids = min(len(vocab), model.config.vocab_size)
        prompts = fixed_prompts(num_ids, key_of(vocab_digest(vocab)))
        published = measure_fingerprint(Scorer(model, prompts, len(prompts)), prompts)
        changes: dict[str, Callable[[], Model]] = {
            "restarted": lambda dtype=dtype: open_model(folder, "--model", dtype=dtype).eval(),
            "in a batch": lambda model=model: model,
            other: lambda model=model, other=other: copy.deepcopy(model).to(getattr(torch, other)),
            "8 bits": lambda model=model: rounded(model, 8),
            "4 bits": lambda model=model: rounded(model, 4),
            "LoRA": lambda model=model: lora_tuned(model, tokenizer),
        }
        for change, make in changes.items():
            alone = 0 if change == "in a batch" else len(prompts)
            asked = ask_fingerprint(Scorer(make(), prompts, alone), prompts)
            mean, largest = fingerprint_distance(published, asked)
            pair = {FINGERPRINT: published}, {FINGERPRINT: asked}
            yield {
                "dtype": dtype, "change": change, "mean": f"{mean:.2g}", "max": f"{largest:.2g}",
                "tolerance_mean": f"{published['tolerance']['mean']:.2g}",
                "tolerance_max": f"{published['tolerance']['max']:.2g}",
                "apart": any(True for _ in identity_differences(*pair)),
            }  # fmt: skip


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id of a causal LM")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--notes", default="", help="remark for the table")
    options = parser.parse_args()
    columns = {"model": Path(options.model).name, "torch": torch.__version__}
    write_table(
        "fingerprint", list(lines(options.model, options.dtypes)), columns | setting(options.notes)
    )


if __name__ == "__main__":
    main()
