"""Tiny models with a chat template, and a corpus of short conversations."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from helpers.tiny import save_tiny

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}END{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ANSWERS = {"one?": "uno", "two?": "due"}


def chat(question: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def save_teacher(folder: Path, end: str) -> Path:
    save_tiny(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE.replace("END", end)
    tokenizer.save_pretrained(folder)
    return folder
