"""A checkpoint as an ordinary transformers model, compared with the weights before it is done."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from caskd.store.errors import CorruptError, UsageError
from caskd.train.checkpoint import STATE, STUDENT, WEIGHTS, RunState, read_state
from caskd.train.config import ExportConfig
from caskd.train.manifest import find_checkpoint, verify

PROBE_TOKENS = 16


def export_command(config: ExportConfig) -> int:
    """`caskd export CHECKPOINT OUT`."""
    print(f"wrote {export(config.checkpoint, config.out)}")
    return 0


def export(checkpoint: Path, out: Path) -> Path:
    """Write a checkpoint's float32 weights as safetensors, with tokenizer and model card.

    The directory appears when all of it is written and reloads to the same logits.

    Args:
        checkpoint: a run's directory (its newest complete checkpoint) or one checkpoint.
        out: new or empty.

    Returns:
        `out`.

    Raises:
        UsageError: there is no complete checkpoint, or `out` has something in it.
        CorruptError: the checkpoint has other bytes than were saved.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: expected a new or empty directory. Give another one.")
    source = find_checkpoint(checkpoint)
    verify(source, only=(WEIGHTS, f"{STUDENT}/", STATE))
    model = consolidated_model(source)
    written = out.with_name(f".{out.name}.exporting")
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir(parents=True)
    try:
        model.save_pretrained(written)
        _copy_tokenizer(source / STUDENT, written)
        card = model_card(read_state(source), num_parameters=model.num_parameters())
        (written / "README.md").write_text(card, encoding="utf-8")
        check_reload(model, written)
        if out.exists():
            out.rmdir()
        os.replace(written, out)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return out


def consolidated_model(checkpoint: Path) -> Any:
    """The trained student of a checkpoint, in float32.

    Raises:
        CorruptError: the weights are not those of the configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint / STUDENT)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = load_file(checkpoint / WEIGHTS)
    saved = model.state_dict().keys()
    expected = {name for name, _ in model.named_parameters()}
    expected |= {name for name, _ in model.named_buffers() if name in saved}
    if expected != weights.keys():
        different = sorted(expected ^ weights.keys())[0]
        raise CorruptError(f"{checkpoint}: {different} does not belong to both weights and config.")
    model.load_state_dict(weights, strict=False)  # tied weights are there once
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def check_reload(model: Any, directory: Path) -> None:
    """Load what was written and compare its logits with the model's.

    Raises:
        CorruptError: they differ.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(directory)
    reloaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    tokens = torch.linspace(0, num_embeddings - 1, PROBE_TOKENS).long()[None]
    ours, theirs = model(input_ids=tokens).logits, reloaded(input_ids=tokens).logits
    if not torch.equal(ours, theirs):
        raise CorruptError(
            f"{directory}: the exported model's logits differ from the checkpoint's by "
            f"{float((ours - theirs).abs().max()):.3g}; nothing was written."
        )


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Everything beside the weights that `save_pretrained` did not write."""
    for path in source.iterdir():
        if not (target / path.name).exists():
            shutil.copy2(path, target / path.name)


def model_card(state: RunState, *, num_parameters: int) -> str:
    """README.md of an exported student."""
    config = state.config
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "tags: [caskd, distillation, cascade]",
            "---",
            f"# A student of {state.teacher}",
            "",
            "The small model of a cascade, trained with caskd from the teacher's stored logits.",
            "",
            f"- objective: {config['objective']}, label weight "
            f"{'by default' if config['w'] is None else config['w']}, tail {config['tail']}",
            f"- started from: {config['student']} ({num_parameters:,} parameters)",
            f"- steps: {state.step:,} of {config['global_batch_size']} examples, "
            f"peak learning rate {config['lr']:g}",
            f"- store: seal {state.store_digest}",
            "",
        ]
    )
