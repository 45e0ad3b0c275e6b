"""The student model, its loss head and LoRA."""

from caskd.train.model.lora import (
    LoraOptions,
    add_adapters,
    lora_options,
    merged,
    save_adapter,
    shared_adapter,
)
from caskd.train.model.other_tokenizer import (
    AlignmentStats,
    SpanOptions,
    check_any_spans,
    check_other_bytes,
    longest_of_all,
    sample_alignment,
    span_lines,
    student_tokens,
)
from caskd.train.model.student import (
    SUM_NAMES,
    LossOptions,
    StudentWithLoss,
    check_config,
    load_student,
    load_tokenizer,
    recompute_activations,
    student_groups,
)
from caskd.train.model.teacher_text import TeacherText, write_teacher_text
from caskd.train.model.text_differences import teacher_text, text_notes

__all__ = [
    "SUM_NAMES",
    "AlignmentStats",
    "LoraOptions",
    "LossOptions",
    "SpanOptions",
    "StudentWithLoss",
    "TeacherText",
    "add_adapters",
    "check_any_spans",
    "check_config",
    "check_other_bytes",
    "load_student",
    "load_tokenizer",
    "longest_of_all",
    "lora_options",
    "merged",
    "recompute_activations",
    "sample_alignment",
    "save_adapter",
    "shared_adapter",
    "span_lines",
    "student_groups",
    "student_tokens",
    "teacher_text",
    "text_notes",
    "write_teacher_text",
]
