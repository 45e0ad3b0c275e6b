"""Train the teacher of `caskd demo` with a plain torch loop over the demo's tasks.

    OMP_NUM_THREADS=1 python examples/train_demo_teacher.py OUT

The teacher sees train prompts only (`caskd.cli.demo.demo_tasks.split_of`), each task equally often.
"""

import argparse
import itertools
import math
import random
import time
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from caskd.cli.demo.demo_models import character_tokenizer, tiny_llama
from caskd.cli.demo.demo_tasks import TASKS, generate

EOS, IGNORED = 2, -100
Example = tuple[list[int], list[int]]  # token ids, labels


def encode(
    tokenizer: PreTrainedTokenizerFast, record: dict[str, str]
) -> tuple[list[int], list[int]]:
    """Token ids and labels of one record; prompt tokens have no label."""
    prompt = tokenizer.encode(record["prompt"])
    response = [*tokenizer.encode(record["response"], add_special_tokens=False), EOS]
    return prompt + response, [IGNORED] * len(prompt) + response


def collate(rows: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """`ids[B, T]` and `labels[B, T]`, padded on the right, where causal attention needs no mask."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
    return ids, labels


def learning_rate(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps, then a cosine to zero."""
    warmup = min(1.0, (step + 1) / 200)
    return peak * warmup * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def main() -> None:
    """Train, print the loss, and save in bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--num-layers", type=int, default=4)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = character_tokenizer()
    model = LlamaForCausalLM(tiny_llama(args.hidden_size, args.num_layers)).to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98)
    )
    pool: dict[str, list[Example]] = {task: [] for task in TASKS}
    for record in itertools.islice(generate(args.seed, "train"), args.examples):
        pool[record["task"]].append(encode(tokenizer, record))
    tasks, rng = list(pool), random.Random(args.seed)
    started = time.monotonic()
    for step in range(args.steps):
        picked = [rng.choice(pool[rng.choice(tasks)]) for _ in range(args.batch_size)]
        ids, labels = (tensor.to(device) for tensor in collate(picked))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == args.steps - 1:
            print(
                f"step {step} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True
            )
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
