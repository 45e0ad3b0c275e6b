"""Train a student from a store with Lightning, on one device.

    python examples/lightning_loop.py STUDENT OUT STORE[=WEIGHT]... [--steps N]

Install lightning first. The loss of a step is the mean over its rows.
"""

import argparse

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.train import StoreDataset, cascade_aware_loss
from caskd.train.loss import TeacherRows

BATCH = 8


class Student(lightning.LightningModule):
    """A causal language model with the loss of `caskd train`."""

    def __init__(self, folder: str, objective: str) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        self.objective = objective
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """The mean loss over the rows of a batch."""
        out = self.model.model(batch["input_ids"], attention_mask=batch["attention_mask"])
        hidden = out.last_hidden_state.flatten(0, 1)[batch["gather_index"]]  # [N, H]
        labels = batch["labels"].flatten()[batch["gather_index"] + 1]  # [N]
        teacher = {
            name.removeprefix("teacher_"): value
            for name, value in batch.items()
            if name.startswith("teacher_")
        }
        head, rows = self.model.lm_head.weight, TeacherRows(**teacher)
        total = cascade_aware_loss(hidden, head, labels, rows, objective=self.objective).loss
        loss = total / len(labels)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(words: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("out")
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--objective", default="cat-dist")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--accept-imported", action="store_true")
    args = parser.parse_args(words)

    data = StoreDataset(
        *args.stores,
        objective=args.objective,
        batch_size=BATCH,
        num_epochs=None,
        accept_imported=args.accept_imported,
    )
    student = Student(args.student, args.objective)
    trainer = lightning.Trainer(
        max_steps=args.steps,
        accelerator=args.accelerator,
        devices=1,
        default_root_dir=args.out,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(student, DataLoader(data, batch_size=BATCH, collate_fn=data.collate))
    student.model.save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.student, trust_remote_code=False).save_pretrained(args.out)
    return student.losses


if __name__ == "__main__":
    main()
