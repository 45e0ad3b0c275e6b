"""Export a checkpoint as an ordinary transformers model, and compare it after a reload."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from caskd.models import build_model, open_adapter, open_config, open_model, open_tokenizer
from caskd.store.errors import CorruptError, UsageError
from caskd.store.io import CLAIM, claimed, escape_markdown
from caskd.train.checkpoint import (
    CHECKPOINTS,
    STATE,
    STUDENT,
    WEIGHTS,
    RunState,
    checkpoint_path,
    find_checkpoint,
    is_complete,
    load_weights,
    newest_complete,
    read_state,
    step_of,
    verify,
)
from caskd.train.config import ExportConfig
from caskd.train.metrics import METRICS_FILE, lines_up_to
from caskd.train.model import (
    TeacherText,
    add_adapters,
    lora_options,
    merged,
    save_adapter,
    write_teacher_text,
)
from caskd.train.run.validation import EVAL_FILE, best_step_of

PROBE_TOKENS = 16
GENERATION_CONFIG = "generation_config.json"

_CARD_METRICS = (
    "loss", "kl", "keep_fraction", "student_accuracy", "nll", "accuracy", "ece", "nats_per_byte",
)  # fmt: skip


def export_command(config: ExportConfig) -> int:
    """`caskd export CHECKPOINT OUT`."""
    checkpoint = best_checkpoint(config.checkpoint) if config.best else config.checkpoint
    out = export(
        checkpoint,
        config.out,
        adapter=config.adapter,
        allow_unfinished=config.allow_unfinished,
    )
    print(f"wrote {out}")
    return 0


def export(
    checkpoint: Path, out: Path, *, adapter: bool = False, allow_unfinished: bool = False
) -> Path:
    """Write a checkpoint's float32 weights as safetensors, with tokenizer and model card.

    `out` appears only when everything is written and reloads to the same logits.

    Args:
        checkpoint: a run's directory (its newest complete checkpoint) or one checkpoint.
        out: new or empty directory.
        adapter: write only the adapters of a LoRA run, not the merged weights.
        allow_unfinished: export also from a run that has not taken all its steps.

    Returns:
        `out`.

    Raises:
        UsageError: there is no complete checkpoint, the run is not finished, the checkpoint has no
            adapters, or `out` is not empty or in use.
        CorruptError: the checkpoint is damaged, or the exported model's logits differ.
    """
    _check_empty(out)
    # Beside `out`, which would exist before it is complete if the claim were in it.
    work = out.with_name(f".{out.name}.exporting")
    with claimed(work, "OUT"):
        _check_empty(out)  # again: another export may have written it before this one held it
        source = find_checkpoint(checkpoint)
        verify(source, only=(f"{WEIGHTS}/", f"{STUDENT}/", STATE))
        state = read_state(source)
        if not allow_unfinished:
            _check_finished(source, state)
        if adapter and state.config["lora_rank"] is None:
            raise UsageError(
                f"--adapter: {source} was trained without --lora-rank; run without --adapter"
            )
        _write(source, state, work, out, adapter=adapter)
    return out


def _check_empty(out: Path) -> None:
    if (out / CLAIM).exists():
        with claimed(out, "OUT"):  # refused if another command holds it, else a stale claim goes
            pass
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(
            f"{out}: is a file or a directory with files; expected a new or empty directory; "
            "pass another OUT"
        )


def _check_finished(source: Path, state: RunState) -> None:
    """Refuse a checkpoint of a run whose newest checkpoint is not its last step."""
    newest, total = source, state.config["steps"]
    if source.parent.name == CHECKPOINTS:
        newest = newest_complete(source.parent.parent)
    step = max(step_of(newest), state.step)
    if step < total:
        raise UsageError(
            f"{newest}: the run is not finished (step {step:,} of {total:,}); continue it with "
            "caskd train --resume, or pass --allow-unfinished"
        )


def _write(source: Path, state: RunState, work: Path, out: Path, *, adapter: bool) -> None:
    """Write the model in `work`, which this process holds, and move it to `out`."""
    model, wrapped = consolidated_model(source, state)
    written = work / "model"
    shutil.rmtree(written, ignore_errors=True)  # of an export to `out` that was killed
    written.mkdir(parents=True)
    try:
        if adapter:
            save_adapter(wrapped, written)
        else:
            model = model if wrapped is None else merged(wrapped).eval()
            model.save_pretrained(written)
        _copy_tokenizer(source / STUDENT, written)
        text = TeacherText.from_json(state.text)
        notes = [] if text is None else write_teacher_text(text, written)
        card = model_card(
            state, num_parameters=model.num_parameters(), run=source.parent.parent, notes=notes
        )
        (written / "README.md").write_text(card, encoding="utf-8")
        check_reload(model, written, base=str(state.config["student"]) if adapter else None)
        try:
            os.replace(written, out)
        except OSError as error:
            raise UsageError(
                f"{out}: {os.strerror(error.errno or 0)}: another process wrote to it meanwhile; "
                "expected a new or empty directory: pass another OUT"
            ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def best_checkpoint(run: Path) -> Path:
    """The checkpoint of a run with the best value of its --best-metric.

    Raises:
        UsageError: the run has no evaluations with a best metric, or the checkpoint is missing.
    """
    metric = read_state(find_checkpoint(run)).config["best_metric"]
    step = best_step_of(run, metric) if metric else None
    if step is None:
        raise UsageError(
            f"--best: {run} has no evaluations by a --best-metric; expected at least one; run "
            "without --best, or train with --eval-store and --best-metric"
        )
    checkpoint = checkpoint_path(run, step)
    if not is_complete(checkpoint):
        raise UsageError(
            f"--best: the best {metric} was at step {step}; expected {checkpoint}, which is "
            "missing; run without --best for the newest checkpoint"
        )
    return checkpoint


def consolidated_model(checkpoint: Path, state: RunState) -> tuple[Any, Any]:
    """The trained student of a checkpoint in float32, and peft's wrapper if it has adapters.

    Raises:
        CorruptError: the names of the weights differ from the configuration's model.
    """
    config = open_config(checkpoint / STUDENT, "checkpoint")
    model = build_model(config, "checkpoint", dtype=torch.float32)
    lora = lora_options(state.config)
    wrapped = None if lora is None else add_adapters(model, lora, str(state.config["student"]))
    load_weights(checkpoint, model)  # tied weights are stored once
    return model.eval(), wrapped


@torch.no_grad()
def check_reload(model: Any, directory: Path, base: str | None = None) -> None:
    """Reload an exported directory and compare its logits with the model's.

    Args:
        base: the base model of an exported adapter; None for a whole model.

    Raises:
        CorruptError: the logits differ.
    """
    open_tokenizer(directory, "export")
    reloaded = open_model(base or directory, "--student" if base else "export", dtype="float32")
    if base is not None:
        reloaded = open_adapter(reloaded, directory, "--adapter")
    reloaded.eval()
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    tokens = torch.linspace(0, num_embeddings - 1, PROBE_TOKENS).long()[None]
    ours, theirs = model(input_ids=tokens).logits, reloaded(input_ids=tokens).logits
    if not torch.equal(ours, theirs):
        raise CorruptError(
            f"{directory}: the exported model's logits differ from the checkpoint's by "
            f"{float((ours - theirs).abs().max()):.3g}; expected none; nothing was written"
        )


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of the student directory that `save_pretrained` did not write.

    The generation config is the student's own: `save_pretrained` derives one from the model's
    config, which lacks settings such as further end tokens.
    """
    for path in source.iterdir():
        if path.name == GENERATION_CONFIG or not (target / path.name).exists():
            shutil.copy2(path, target / path.name)


def model_card(
    state: RunState, *, num_parameters: int, run: Path, notes: Sequence[str] = ()
) -> str:
    """README.md of an exported student, with the last metrics in the directory `run`."""
    config = state.config
    left_out = [*_left_out_line(run, state)]
    tail = "" if left_out else f", tail {config['tail']}"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "tags: [caskd, distillation, cascade]",
            "---",
            f"# A student of {state.teacher}",
            "",
            "The small model of a cascade, trained with caskd on the teacher's stored logits.",
            "",
            f"- objective: {config['objective']}, label weight "
            f"{'by default' if config['w'] is None else config['w']}{tail}",
            f"- started from: {Path(config['student']).name} ({num_parameters:,} parameters)",
            *_unfinished_lines(state),
            f"- steps: {state.step:,} of {config['steps']:,}, each of "
            f"{config['global_batch_size']} examples, peak "
            f"learning rate {config['lr']:g}, {config['optimizer']}",
            *([f"- adapters: LoRA of rank {config['lora_rank']}"] if config["lora_rank"] else []),
            f"- store: seal {state.store_digest}",
            *(f"- text: {escape_markdown(note)}" for note in notes),
            *left_out,
            *_card_lines(run, state.step),
            "",
        ]
    )


def _unfinished_lines(state: RunState) -> Iterator[str]:
    steps = state.config["steps"]
    if state.step < steps:
        yield f"- **not fully trained**: exported at step {state.step:,} of {steps:,}"


def _left_out_line(run: Path, state: RunState) -> Iterator[str]:
    """For a student with another tokenizer: the share of examples that taught it nothing."""
    lines = [json.loads(line) for line in lines_up_to(run / METRICS_FILE, state.step)]
    if not any("other_bytes" in line for line in lines):
        return
    total = len(lines) * state.config["global_batch_size"]
    other, long = (sum(line[name] for line in lines) for name in ("other_bytes", "too_long"))
    yield (
        f"- tokenizer: the student's own, not the teacher's; of {total:,} examples, "
        f"{other / total:.2%} were left out because their bytes differ in it, and "
        f"{long / total:.2%} because they are too long for the student"
    )


def _card_lines(run: Path, step: int) -> Iterator[str]:
    """The metrics of that step in training and on --eval-store, one line each."""
    for name, label in ((METRICS_FILE, "last batch"), (EVAL_FILE, "evaluation")):
        for line in lines_up_to(run / name, step)[-1:]:
            values: Mapping[str, Any] = json.loads(line)
            if values["step"] == step:
                shown = (f"{k} {values[k]:.4g}" for k in _CARD_METRICS if values.get(k) is not None)
                yield f"- {label}: {', '.join(shown)}"
