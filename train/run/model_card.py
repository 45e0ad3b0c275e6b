"""README.md of an exported student."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caskd.store.io import escape_markdown, parse_json
from caskd.train.checkpoint import RunState
from caskd.train.metrics import METRICS_FILE, lines_up_to
from caskd.train.objectives import CONFIDENCE_WEIGHT, resolve_objective
from caskd.train.run.validation import EVAL_FILE

_CARD_METRICS = (
    "loss", "kl", "keep_fraction", "student_accuracy", "nll", "accuracy", "ece", "nats_per_byte",
)  # fmt: skip


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
            f"{resolve_objective(config['objective'], config['w']).w:g}{tail}",
            f"- started from: {Path(config['student']).name} ({num_parameters:,} parameters)",
            *_confidence_lines(config),
            *_initial_lines(config),
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


def _confidence_lines(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("confidence"):
        weight = config["confidence_weight"]
        weight = CONFIDENCE_WEIGHT if weight is None else weight
        yield f"- confidence: {config['confidence']}, weight {weight:g}"


def _initial_lines(config: Mapping[str, Any]) -> Iterator[str]:
    """The run whose weights this one began with; checkpoints of older versions name none."""
    if config.get("init_from"):
        yield f"- with the weights of: run {escape_markdown(config['init_from'])}"


def _unfinished_lines(state: RunState) -> Iterator[str]:
    steps = state.config["steps"]
    if state.step < steps:
        yield f"- **not fully trained**: exported at step {state.step:,} of {steps:,}"


def _left_out_line(run: Path, state: RunState) -> Iterator[str]:
    """For a student with another tokenizer: the share of examples that taught it nothing."""
    lines = [
        parse_json(line, constants=True) for line in lines_up_to(run / METRICS_FILE, state.step)
    ]
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
            values: Mapping[str, Any] = parse_json(line, constants=True)
            if values["step"] == step:
                shown = (f"{k} {values[k]:.4g}" for k in _CARD_METRICS if values.get(k) is not None)
                yield f"- {label}: {', '.join(shown)}"
