"""A few steps of CascadeTrainer under torchrun; called by test_cascade_trainer.py.

    cascade_trainer_driver.py ROOT OUT MICRO_BATCH_SIZE

Rank 0 writes OUT: what the Trainer logged, and the weights after.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, TrainingArguments

from caskd.train import CascadeTrainer, StoreDataset

STEPS, GLOBAL_BATCH = 3, 8
EVAL_BATCH = 10  # of 41 examples: the last round has one, and the other ranks have none


def main() -> None:
    root, out, micro = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    arguments = TrainingArguments(
        output_dir=str(out.parent / "hf"), max_steps=STEPS, per_device_train_batch_size=micro,
        logging_steps=1, learning_rate=1e-3, use_cpu=True, report_to="none", disable_tqdm=True,
        save_strategy="no", per_device_eval_batch_size=EVAL_BATCH,
    )  # fmt: skip
    arguments.gradient_accumulation_steps = GLOBAL_BATCH // (micro * arguments.world_size)
    trainer = CascadeTrainer(
        AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32),
        arguments,
        train_dataset=StoreDataset(str(root / "store"), batch_size=micro, num_epochs=None),
        eval_dataset=StoreDataset(str(root / "store"), batch_size=EVAL_BATCH),
    )
    before = trainer.evaluate()
    trainer.train()
    evals = [before, trainer.evaluate()]
    if arguments.process_index == 0:
        steps = [line for line in trainer.state.log_history if "keep_fraction" in line]
        torch.save({"steps": steps, "weights": trainer.model.state_dict(), "evals": evals}, out)
    # A rank that ends while another still uses the group may abort.
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
