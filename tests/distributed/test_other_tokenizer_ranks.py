"""A student with another tokenizer on two ranks: the losses of one rank."""

from pathlib import Path

import pytest
from helpers.other_tokenizer import captured, run, save
from helpers.training import read_metrics
from helpers.warm import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_two_ranks_have_the_losses_of_one(tmp_path: Path) -> None:
    """Two stores of teachers with two tokenizers; the mask only in the last steps."""
    records = [
        {"prompt": "What is it?", "response": f" It is{' so' * count}, and that is {count}."}
        for count in range(9)
    ]
    stores = []
    for name in ("byte-level", "gpt4-like"):
        (tmp_path / name).mkdir()
        captured(tmp_path / name, records, save(tmp_path / name / "teacher", name), top_k=24)
        stores.append(str(tmp_path / name / "store"))
        records = [{**record, "prompt": "It is"} for record in records]
    save(tmp_path / "student", "prepend")
    options = {"store": tuple(stores), "match": "bytes-1to1", "mask_from_step": 2}
    one = read_metrics(run(tmp_path, "one", dtype="float32", **options).parents[1])
    words = [
        "-m", "caskd.cli", "train", *(word for store in stores for word in ("--store", store)),
        "--match", "bytes-1to1", "--mask-from-step", "2", "--steps", "4",
        "--student", str(tmp_path / "student"), "--out", str(tmp_path / "two"),
        "--global-batch-size", "4", "--micro-batch-size", "1", "--dtype", "float32",
        "--lr", "1e-2", "--objective", "cat-alm", "--eval-store", stores[0],
    ]  # fmt: skip
    run_ranks(2, words)
    for ours, theirs in zip(read_metrics(tmp_path / "two"), one, strict=True):
        assert ours["keep_fraction"] == pytest.approx(theirs["keep_fraction"], abs=1e-12)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5, abs=1e-7)
        assert ours["mapped_mass"] == theirs["mapped_mass"]
        assert ours["mapped_spans"] == theirs["mapped_spans"] > 0
        assert ours["student_accuracy"] == pytest.approx(theirs["student_accuracy"], abs=1e-12)
