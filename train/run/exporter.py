"""Export a checkpoint as an ordinary transformers model, and compare it after a reload."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from caskd.models import (
    CALL_TOKEN,
    build_model,
    num_embeddings,
    open_adapter,
    open_config,
    open_model,
    open_tokenizer,
    run_model,
)
from caskd.store.errors import CorruptError, UsageError
from caskd.store.io import CLAIM, check_room, claimed, tell
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
from caskd.train.model import (
    TeacherText,
    add_adapters,
    lora_options,
    merged,
    save_adapter,
    write_teacher_text,
)
from caskd.train.run.model_card import model_card
from caskd.train.run.validation import best_step_of

PROBE_TOKENS = 16
RELOAD_TOLERANCE = 1e-5
_CURE = "export with the version of transformers that trained the run"
"""Largest difference of a logit after a reload, relative to the largest logit."""
MERGE_TOLERANCE = 1e-4
"""Largest change of a logit when adapters are merged in float32, relative to the largest logit."""
GENERATION_CONFIG = "generation_config.json"


def export_command(config: ExportConfig) -> int:
    """`caskd export CHECKPOINT OUT`."""
    checkpoint = best_checkpoint(config.checkpoint) if config.best else config.checkpoint
    out = export(
        checkpoint,
        config.out,
        adapter=config.adapter,
        allow_unfinished=config.allow_unfinished,
    )
    tell(f"wrote {out}")
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
    sizes = [path.stat().st_size for path in (source / WEIGHTS).iterdir()]
    check_room(out, "OUT", 0 if adapter else sum(sizes))
    model, wrapped = consolidated_model(source, state)
    written = work / "model"
    shutil.rmtree(written, ignore_errors=True)  # of an export to `out` that was killed
    written.mkdir(parents=True)
    text = TeacherText.from_json(state.text)
    notes: list[str] = []
    try:
        if adapter:
            save_adapter(wrapped, written)
        else:
            model = model if wrapped is None else merge_adapters(model, wrapped)
            notes += keep_padding_row(model)
            model.save_pretrained(written)
        _copy_tokenizer(source / STUDENT, written)
        if state.config.get("delegate") is not None:
            notes.append(
                f"{CALL_TOKEN} (id {model.config.call_token_id}) asks a larger model for the next "
                "token: caskd predict --large MODEL --token-rule call"
            )
        if text is not None:
            notes += write_teacher_text(text, written)
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
    if (rule := state.config.get("delegate")) is not None:
        model.config.call_token_rule = rule
    return model.eval(), wrapped


def merge_adapters(model: Any, wrapped: Any) -> Any:
    """The model with its adapters merged into its weights.

    Args:
        model: with the layers of its adapters inside.
        wrapped: peft's wrapper of it.

    Raises:
        CorruptError: its logits differ from those with the adapters.
    """
    before = probe_logits(model)
    model = merged(wrapped).eval()
    after = probe_logits(model)
    difference, largest = (float(x.abs().max()) for x in (after - before, before))
    if difference > MERGE_TOLERANCE * max(1.0, largest):
        raise CorruptError(
            f"--lora-rank: merging the adapters changes logits of up to {largest:.3g} by "
            f"{difference:.3g}; expected the same ones to rounding; nothing was written; export "
            "the adapters alone with --adapter"
        )
    return model


@torch.no_grad()
def probe_logits(model: Any) -> torch.Tensor:
    """Logits of a few tokens over the whole vocabulary."""
    tokens = torch.linspace(0, num_embeddings(model, "export") - 1, PROBE_TOKENS).long()[None]
    logits: torch.Tensor = run_model(model, tokens).logits
    return logits


@torch.no_grad()
def check_reload(model: Any, directory: Path, base: str | None = None) -> None:
    """Reload an exported directory and compare its logits with the model's.

    Args:
        base: the base model of an exported adapter; None for a whole model.

    Raises:
        CorruptError: weights or logits differ.
    """
    open_tokenizer(directory, "export")
    reloaded = open_model(base or directory, "--student" if base else "export", dtype="float32")
    if base is not None:
        reloaded = open_adapter(reloaded, directory, "--adapter")
    reloaded.eval()
    if base is None:
        theirs = reloaded.state_dict()
        changed = [name for name, own in model.state_dict().items()
                   if name not in theirs or not torch.equal(own, theirs[name])]  # fmt: skip
        if changed:
            raise CorruptError(
                f"{directory}: {len(changed)} weights of the reloaded model differ from the "
                f"checkpoint's, the first {changed[0]}; expected equal ones; nothing was written: "
                f"transformers changes weights of {type(model).__name__} when it opens them",
                cure=_CURE,
            )
    ours, again = probe_logits(model), probe_logits(reloaded)
    difference = float((ours - again).abs().max())
    # Sums over experts and states may be in another order, with equal weights.
    allowed = RELOAD_TOLERANCE * max(1.0, float(ours.abs().max()))
    if difference > allowed:
        raise CorruptError(
            f"{directory}: the exported model's logits differ from the checkpoint's by "
            f"{difference:.3g}; expected at most {allowed:.3g}; nothing was written",
            cure=_CURE,
        )


def keep_padding_row(model: Any) -> list[str]:
    """Remove the padding token of a config with which opening the model would change a weight.

    Some classes of transformers (Youtu) set the embedding's row of that token to zero whenever a
    checkpoint is opened, and with tied weights the head's row. generation_config.json still names
    the token.

    Returns:
        A note for the model card, if it was removed.
    """
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None or not _resets_padding(model):
        return []
    config.pad_token_id = None
    return [
        f"{type(model).__name__} sets the row of a padding token to zero when it is opened, so "
        "config.json names none; generation_config.json does"
    ]


@torch.no_grad()
def _resets_padding(model: Any) -> bool:
    """Whether transformers' initialisation overwrites the padding row of a loaded embedding."""
    embedding = torch.nn.Embedding(2, 2, padding_idx=0)
    embedding.weight.fill_(1.0)
    embedding.weight._is_hf_initialized = True  # type: ignore[attr-defined] # as when it is loaded
    try:
        model._init_weights(embedding)
    except AttributeError:  # a rule for the model's own embedding, as xLSTM has
        return False
    return bool((embedding.weight != 1.0).any())


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of the student directory that `save_pretrained` did not write.

    The generation config is the student's own: `save_pretrained` derives one from the model's
    config, which lacks settings such as further end tokens.
    """
    for path in source.iterdir():
        if not path.is_file():
            continue
        if path.name == GENERATION_CONFIG or not (target / path.name).exists():
            shutil.copy2(path, target / path.name)
