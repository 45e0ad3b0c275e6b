"""Train a student from a store in a loop of accelerate: the data and the loss, no trainer.

    accelerate launch examples/accelerate_loop.py STUDENT OUT STORE[=WEIGHT]... [--steps N]

Install caskd[hf-trainer] first. The loss of a step is divided once, by the rows of all its
micro-batches and ranks, so that unequal responses weigh as in one large batch.
"""

import argparse
import itertools

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.train import StoreDataset, cascade_aware_loss
from caskd.train.loss import TeacherRows

MICRO_BATCH, ACCUMULATION = 4, 2


def loss_sum(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], objective: str
) -> torch.Tensor:
    """The loss of a micro-batch, summed over its rows."""
    out = model.model(batch["input_ids"], attention_mask=batch["attention_mask"])
    hidden = out.last_hidden_state.flatten(0, 1)[batch["gather_index"]]  # [N, H]
    labels = batch["labels"].flatten()[batch["gather_index"] + 1]  # [N]
    teacher = {k.removeprefix("teacher_"): v for k, v in batch.items() if k.startswith("teacher_")}
    rows = TeacherRows(**teacher)
    return cascade_aware_loss(hidden, model.lm_head.weight, labels, rows, objective=objective).loss


def main(words: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("out")
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--objective", default="cat-dist")
    parser.add_argument("--accept-imported", action="store_true")
    args = parser.parse_args(words)

    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(args.student, trust_remote_code=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    data = StoreDataset(
        *args.stores,
        objective=args.objective,
        batch_size=MICRO_BATCH,
        num_epochs=None,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accept_imported=args.accept_imported,
    )  # divides itself among ranks, so the loader is not prepared
    batches = iter(DataLoader(data, batch_size=MICRO_BATCH, collate_fn=data.collate))
    losses = []
    for _ in range(args.steps):
        micro_batches = list(itertools.islice(batches, ACCUMULATION))
        num_rows = torch.tensor(sum(len(b["gather_index"]) for b in micro_batches))
        num_rows = accelerator.reduce(num_rows.to(accelerator.device))
        total = torch.zeros((), device=accelerator.device)
        for batch in micro_batches:
            batch = {name: value.to(accelerator.device) for name, value in batch.items()}
            loss = loss_sum(plain, batch, args.objective) / num_rows
            accelerator.backward(loss)
            total += loss.detach()
        for parameter in plain.parameters():  # each rank has the sum of its own rows
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(total)))
        accelerator.print(f"step {len(losses)}: loss {losses[-1]:.4f}")
    if accelerator.is_main_process:
        plain.save_pretrained(args.out)
        AutoTokenizer.from_pretrained(args.student, trust_remote_code=False).save_pretrained(
            args.out
        )
    return losses


if __name__ == "__main__":
    main()
