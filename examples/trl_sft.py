"""Train a student from a store in TRL's SFTTrainer, with the cascade-aware loss.

    python examples/trl_sft.py STUDENT OUT STORE[=WEIGHT]... [--steps N] [--accept-imported]

Install caskd[hf-trainer] and trl first. `CascadeTrainer` brings the loss and the store's order;
SFTTrainer brings its model loading, adapters (`peft_config`) and settings. The store holds tokens,
so SFTTrainer must not prepare the data again.
"""

import argparse

import pyarrow as pa
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from caskd.train import CascadeTrainer, StoreDataset

STAND_IN = Dataset(pa.table({"input_ids": [[0]], "labels": [[0]]}), fingerprint="stand-in")
"""SFTTrainer is made with a data set of Hugging Face's only; the store's then replaces it."""


class CascadeSFTTrainer(CascadeTrainer, SFTTrainer):
    """SFTTrainer with the batches and the loss of CascadeTrainer."""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("out")
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--objective", default="cat-dist")
    parser.add_argument("--tail")
    parser.add_argument("--accept-imported", action="store_true")
    args = parser.parse_args(words)

    micro_batch_size = 4
    rows = StoreDataset(
        *args.stores,
        objective=args.objective,
        batch_size=micro_batch_size,
        num_epochs=None,
        accept_imported=args.accept_imported,
    )
    trainer = CascadeSFTTrainer(
        AutoModelForCausalLM.from_pretrained(args.student, trust_remote_code=False),
        SFTConfig(
            output_dir=args.out,
            max_steps=args.steps,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=STAND_IN,
        processing_class=AutoTokenizer.from_pretrained(args.student, trust_remote_code=False),
        objective=args.objective,
        tail=args.tail,
    )
    trainer.train_dataset = rows
    rows.check_tail(trainer.tail)
    rows.check_tokenizer(trainer.processing_class, "--student")
    trainer.train()
    trainer.save_model(args.out)
    print(f"saved in {args.out}: an ordinary transformers model")


if __name__ == "__main__":
    main()
