"""Every Python block of the pages runs as it is shown, on tiny models in place of the named ones.

The readers of docs/store-format.md run in `tests/unit/store/test_format_page.py`.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import ragged_records, save_tiny, write_jsonl
from helpers.training import capture
from transformers import AutoModelForCausalLM

from caskd.cli.main import main
from caskd.precompute import PrecomputeConfig, precompute

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    if page.name != "store-format.md"
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]
LOCAL = {"s3://team/casks/my-store": "my-store", "s3://team/chat": "my-store",
         "s3://team/code": "code"}  # fmt: skip
"""Stores that need a network, and the folders that stand for them."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the blocks name."""
    root = tmp_path_factory.mktemp("pages")
    capture(root, num=50).rename(root / "my-store")
    data = str(write_jsonl(root / "code.jsonl", ragged_records(24, seed=8)))
    precompute(
        PrecomputeConfig(
            teacher=str(root / "teacher"), data=(data,), store=str(root / "code"), top_k=8
        )
    )
    save_tiny(root / "my-student", seed=4)
    for model in ("my-student", "teacher"):
        assert main(["predict", "--model", str(root / model), "--data", data, "--out",
                     str(root / f"{model}.parquet"), "--max-new-tokens", "4"]) == 0  # fmt: skip
    assert main(["eval", "--small", str(root / "my-student.parquet"), "--large",
                 str(root / "teacher.parquet"), "--out", str(root / "report"),
                 "--operating-point", "deferral_rate<=0.5"]) == 0  # fmt: skip
    return root


def names(root: Path) -> dict[str, Any]:
    """What a reader of the pages has at hand."""
    model = AutoModelForCausalLM.from_pretrained(root / "my-student")
    answers = lambda prompts: ["yes"] * len(prompts)  # noqa: E731
    values = np.linspace(0, 1, 5)
    return {
        "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "ask_big": answers, "ask_my_server": answers, "prompts": ["what is 2 + 2?"],
        "score": values, "small_quality": values, "large_quality": 1 - values,
        "next_examples": [0, 1], "examples": [0, 1],
    }  # fmt: skip


def test_blocks_are_found() -> None:
    assert len(BLOCKS) > 3


@pytest.mark.parametrize("block", BLOCKS)
def test_it_runs(folder: Path, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for url, local in LOCAL.items():
        block = block.replace(url, local)
    exec(block, names(folder))
