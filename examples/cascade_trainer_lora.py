"""Train a LoRA adapter from a store in transformers' Trainer, and save the merged model.

    python examples/cascade_trainer_lora.py STUDENT OUT STORE[=WEIGHT]... [--steps N]

Install caskd[lora,hf-trainer] first. `caskd precompute` writes the stores; the student must have
the teacher's tokenizer.
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from caskd.train import CascadeTrainer, StoreDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("out")
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()

    student = AutoModelForCausalLM.from_pretrained(
        args.student, dtype=torch.float32, trust_remote_code=False
    )
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(student, adapter)
    model.print_trainable_parameters()

    micro_batch_size = 4
    trainer = CascadeTrainer(
        model,
        TrainingArguments(
            output_dir=args.out,
            max_steps=args.steps,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=4,
            learning_rate=1e-3,
            logging_steps=5,
            report_to="none",
        ),
        train_dataset=StoreDataset(
            *args.stores, objective="cat-dist", batch_size=micro_batch_size, num_epochs=None
        ),
        objective="cat-dist",
    )
    trainer.train()
    model.merge_and_unload().save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.student, trust_remote_code=False).save_pretrained(args.out)
    print(f"saved in {args.out}: an ordinary transformers model")


if __name__ == "__main__":
    main()
