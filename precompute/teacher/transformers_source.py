"""The transformers backend: a checkpoint's identity, numerics and limits, and how it is loaded."""

from dataclasses import dataclass
from typing import Any

import torch

from caskd.models import config_digest, pick_device, weights_digest
from caskd.precompute.checkpoints import TransformersCheckpoint, WeightBytes, find_checkpoint
from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.rows import targets_of
from caskd.precompute.teacher.divided_teacher import DividedTeacher
from caskd.precompute.teacher.protocol import Teacher
from caskd.precompute.teacher.rank_group import PLAN, current_group
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.store.errors import UsageError
from caskd.store.format import StoreSpec


@dataclass(frozen=True)
class TransformersSource:
    """A teacher that transformers loads into this process."""

    checkpoint: TransformersCheckpoint
    device: str = "auto"
    deterministic: bool = False

    @classmethod
    def find(cls, config: PrecomputeConfig) -> "TransformersSource":
        """Find the checkpoint that the options name.

        Raises:
            UsageError: there is no such checkpoint or device, or it cannot be a teacher.
        """
        if config.executor != "ray":  # whose workers have the devices
            pick_device(config.device)
        checkpoint = find_checkpoint(
            config.teacher,
            config.dtype,
            adapter=config.adapter,
            attention=config.attention,
            device_map=config.device_map,
            tensor_parallel=config.tensor_parallel,
        )
        return cls(checkpoint, config.device, config.deterministic)

    @property
    def name(self) -> str:
        """Last folder name, or hub id: never a path."""
        return self.checkpoint.name

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def num_ids(self) -> int:
        """Number of token ids that the model can read and predict."""
        return self.checkpoint.num_ids

    @property
    def max_length(self) -> int | None:
        """Tokens that one example may have; None without a limit."""
        return self.checkpoint.max_length

    @property
    def weights(self) -> WeightBytes | None:
        """Memory of the weights."""
        return self.checkpoint.weights

    def identity(self) -> dict[str, Any]:
        """Fields of `identity.teacher` in store.json."""
        checkpoint = self.checkpoint
        return {
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "weights_digest": weights_digest(checkpoint.folder),
            "adapter": checkpoint.adapter.identity if checkpoint.adapter else None,
            "config_digest": config_digest(checkpoint.folder),
        }

    def fingerprint(self) -> None:
        """None: digests name the weights."""

    def capture(self) -> dict[str, Any]:
        """Fields of `identity.capture` in store.json that decide the numbers."""
        return {
            "load_dtype": self.checkpoint.load_dtype,
            # The head multiplies in the model's own dtype; only the result is widened to float32.
            "logits_dtype": self.checkpoint.load_dtype,
            "attention": self.checkpoint.attention,
            "quantization": self.checkpoint.quantization,
            "temperature": 1.0,
        }

    def load(self, spec: StoreSpec, *, gpu: int | None = None) -> Teacher:
        """Load the weights, onto GPU number `gpu` of this machine where it has GPUs.

        Rank 0 of a divided teacher makes the other ranks load theirs.

        Raises:
            UsageError: the checkpoint does not load, or there is no such GPU.
        """
        num_gpus = 0 if self.device == "cpu" else torch.cuda.device_count()
        if gpu is not None and num_gpus:
            if gpu >= num_gpus:
                raise UsageError(
                    f"torchrun: started a worker for GPU {gpu}, but this machine has {num_gpus} "
                    f"GPUs; expected one worker per GPU; pass --nproc-per-node {num_gpus}"
                )
            torch.cuda.set_device(gpu)
        group = current_group()
        if group is not None and group.rank == 0:
            group.send(PLAN, spec.to_json())
            group.in_step = True
        teacher = TransformersTeacher(
            self.checkpoint,
            vocab_size=spec.vocab_size,
            targets=targets_of(spec),
            device=self.device,
            deterministic=self.deterministic,
        )
        if group is None or group.rank > 0:
            return teacher
        group.in_step = False
        return DividedTeacher(teacher, group)
