"""The reproduction's recipe runs from data to report, and goes on where it was killed."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("reproduce_driver.py")
WORDS = ("cask", "oak", "store", "small", "large", "cellar", "barrel", "years", "slowly", "wine")


def write_sources(folder: Path) -> None:
    """Plain text under the names of the pool of plain text."""
    rng = random.Random(0)
    for name in ("wikitext2_valid_test/valid.txt", "c4_wiki_demo/wiki_demo.txt"):
        lines = [" ".join(rng.choices(WORDS, k=30)) for _ in range(40)]
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("\n".join(lines))
    (folder / "c4_wiki_demo" / "c4_300.jsonl").write_text(
        "\n".join(json.dumps({"text": " ".join(rng.choices(WORDS, k=230))}) for _ in range(20))
    )


def test_a_killed_reproduction_goes_on(tmp_path: Path) -> None:
    write_sources(tmp_path / "sources")
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, str(DRIVER), str(work), str(tmp_path / "sources")]
    finished = work / "seconds.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        for _ in range(1200):
            if finished.exists() and len(finished.read_text().splitlines()) >= 9:
                break
            assert killed.poll() is None
            time.sleep(0.1)
        killed.kill()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "commands done" in done.stdout
    jobs = [json.loads(line)["job"] for line in finished.read_text().splitlines()]
    assert len(jobs) == len(set(jobs)), "a command was run again after it was done"
    summary = json.loads((work / "text" / "clean" / "report" / "summary.json").read_text())
    names = {student["arm"] for student in summary["students"]}
    assert names == {"xent", "cat-xent", "random-xent", "dist", "cat-dist"}
    config = (work / "text" / "clean" / "cat-xent-0" / "run" / "config.json").read_text()
    assert str(tmp_path) not in config
