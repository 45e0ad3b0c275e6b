"""The student model, its loss head and LoRA."""

from caskd.train.model.lora import LoraOptions, add_adapters, lora_options, merged, save_adapter
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
    "LoraOptions",
    "LossOptions",
    "StudentWithLoss",
    "TeacherText",
    "add_adapters",
    "check_config",
    "load_student",
    "load_tokenizer",
    "lora_options",
    "merged",
    "recompute_activations",
    "save_adapter",
    "student_groups",
    "teacher_text",
    "text_notes",
    "write_teacher_text",
]
