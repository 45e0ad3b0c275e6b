# ruff: noqa: E501
"""The command lines of README and tutorials run as they are shown, one page after another in its folder.

Models and data with the names of the page are tiny, trainings take two steps and answers have few tokens. Blocks behind a comment
`<!-- needs ... -->` are left out; `tests/unit/test_doc_blocks.py` checks that caskd takes them.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import foreign, other_tokenizer
from helpers.chat_models import chat, save_teacher
from helpers.pages import ROOT, blocks, is_shell, lines, needs_more
from helpers.records import write_jsonl
from helpers.tiny import save_tiny

from caskd.cli.demo.demo_models import TEACHER, write_student
from caskd.cli.demo.demo_tasks import write_corpus
from caskd.cli.main import main

pytestmark = pytest.mark.slow


def demo_data(folder: Path) -> None:
    """The demo's tasks and teacher, and a student of one layer."""
    write_corpus(folder / "train.jsonl", 0, "train", 60)
    write_corpus(folder / "test.jsonl", 0, "test", 12)
    shutil.copytree(TEACHER, folder / "BIG")
    write_student(folder / "SMALL", 0, hidden_size=32, num_layers=1)


def predicted(folder: Path, model: str, out: str, data: str = "test.jsonl") -> None:
    words = ["predict", "--model", str(folder / model), "--data", str(folder / data)]
    assert main([*words, "--out", str(folder / out), "--max-new-tokens", "8"]) == 0


def captured(folder: Path, store: str) -> None:
    words = ["precompute", "--teacher", str(folder / "BIG"), "--data", str(folder / "train.jsonl")]
    assert main([*words, "--store", str(folder / store)]) == 0


def readme(folder: Path) -> None:
    demo_data(folder)
    predicted(folder, "BIG", "large.parquet")


def start(folder: Path) -> None:
    demo_data(folder)
    captured(folder, "caskd-demo/store")
    for old, new in (("SMALL", "models/student"), ("test.jsonl", "test.jsonl")):
        target = folder / "caskd-demo" / new
        target.parent.mkdir(exist_ok=True)
        (folder / old).rename(target)
    (folder / "caskd-demo" / "predictions").mkdir()
    predicted(folder, "BIG", "caskd-demo/predictions/teacher.parquet", "caskd-demo/test.jsonl")


def chats(folder: Path) -> None:
    save_teacher(folder / "BIG", "</s>")
    save_tiny(folder / "SMALL", seed=1)
    pairs = [("one?", "uno"), ("two?", "due")] * 16
    write_jsonl(folder / "chats.jsonl", [chat(*pair) for pair in pairs])
    write_jsonl(folder / "chat-test.jsonl", [chat(*pair) for pair in pairs[:4]])


def another(folder: Path) -> None:
    demo_data(folder)
    captured(folder, "my-store")
    other_tokenizer.save(folder / "OTHER", "byte-level")


def distillkit(folder: Path) -> None:
    save_tiny(folder / "TEACHER")
    save_tiny(folder / "SMALL", seed=1)
    tokens = foreign.examples(40)
    foreign.write_distillkit(folder / "CAPTURE", [*map(foreign.distillkit_record, tokens)])


def serving(folder: Path) -> None:
    demo_data(folder)
    write_corpus(folder / "test.jsonl", 0, "test", 40)
    predicted(folder, "SMALL", "small.parquet")
    words = ["predict", "--model", str(folder / "BIG"), "--data", str(folder / "test.jsonl")]
    assert main([*words, "--out", str(folder / "large.parquet"), "--max-new-tokens", "24"]) == 0


PAGES: dict[str, Callable[[Path], None]] = {
    "README.md": readme,
    "docs/start.md": start,
    "docs/tutorials/own-data.md": demo_data,
    "docs/tutorials/chat-data.md": chats,
    "docs/tutorials/another-tokenizer.md": another,
    "docs/tutorials/from-distillkit.md": distillkit,
    "docs/tutorials/serving.md": serving,
}
"""Pages, and what makes the models and data that they name."""
NOTHING_TO_RUN = {"docs/tutorials/large-teacher.md", "docs/tutorials/team-store.md"}
"""Tutorials whose every block needs GPUs, a server or a cloud."""


def shown(page: Path) -> list[str]:
    found = [block for block in blocks(page) if is_shell(block)]
    return [line for block in found if block not in needs_more(page) for line in lines(block)]


def test_every_tutorial_is_run_or_marked() -> None:
    tutorials = {p.relative_to(ROOT).as_posix() for p in (ROOT / "docs" / "tutorials").glob("*.md")}
    assert tutorials == {page for page in (*PAGES, *NOTHING_TO_RUN) if "tutorials" in page}
    assert not [line for page in NOTHING_TO_RUN for line in shown(ROOT / page)]


@pytest.mark.parametrize("page", PAGES)
def test_it_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PAGES[page](tmp_path)
    monkeypatch.chdir(tmp_path)
    found = shown(ROOT / page)
    assert len(found) > 0
    for line in found:
        words = shlex.split(re.sub(r"--steps \d+", "--steps 2", line))
        assert words[0] == "caskd", line
        if words[1] == "predict" and "--max-new-tokens" not in words and page != "docs/start.md":
            words += ["--max-new-tokens", "24"]  # the tiny models have few positions
        if words[1] in ("plan", "precompute") and page == "docs/tutorials/chat-data.md":
            words += ["--top-k", "16"]  # of a vocabulary of 50
        assert main(words[1:]) == 0, line
