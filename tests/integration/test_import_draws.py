"""`caskd import dataset` of counted draws: rows, labels, refusals, and training from them."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import foreign
from helpers.records import write_jsonl
from helpers.tiny import save_tiny, tiny_tokenizer

from caskd.cli.main import main
from caskd.precompute.imports.draws import draw_fields, drawn_shares
from caskd.precompute.imports.examples import clean_cells
from caskd.precompute.imports.formats import FORMATS
from caskd.precompute.imports.source import Reading
from caskd.store import TeacherStore

GOLDEN = Path(__file__).parents[1] / "data" / "golden-v2-draws"
DRAWS = 20


def drawn(tokens: np.ndarray) -> list[Counter[int]]:
    """Draws of each row of a text; row r is about token r + 1."""
    rng = np.random.default_rng(int(tokens.sum()))
    p = np.exp(foreign.log_probs(tokens))
    return [Counter(rng.choice(len(row), DRAWS, p=row / row.sum()).tolist()) for row in p]


def record(tokens: np.ndarray, *, num: int) -> dict[str, Any]:
    """A record with draws of the last `num` tokens, in the order in which ids were first drawn."""
    rows = drawn(tokens)[-num:]
    return {
        "input_ids": tokens.tolist(),
        "sampled_ids": [list(row) for row in rows],
        "sampled_counts": [list(row.values()) for row in rows],
    }


@pytest.mark.parametrize("encoding", ["exact", pytest.param("fitted2", marks=pytest.mark.slow)])
def test_a_row_has_the_draws_of_its_own_token(
    tmp_path: Path, imported: Callable[..., int], encoding: str
) -> None:
    texts = foreign.examples(6, shortest=6)
    assert imported([record(tokens, num=4) for tokens in texts], "--encoding", encoding) == 0
    assert main(["store", "verify", "--full", str(tmp_path / "store")]) == 0
    store = TeacherStore.open(tmp_path / "store")
    batches = [store.read([index]) for index in range(len(store))]
    found = {tuple(batch.token_ids.tolist()): batch for batch in batches}
    for tokens in texts:
        batch = found.pop(tuple(tokens.tolist()))
        assert batch.labels.tolist() == tokens[-4:].tolist()
        assert batch.logit_positions.tolist() == list(range(len(tokens)))[-5:-1]
        for n, row in enumerate(drawn(tokens)[-4:]):
            cells = sorted(row.items(), key=lambda cell: (-cell[1], cell[0]))
            kept = int(batch.column("num_kept")[n])
            ids, counts = (batch.column(name)[n] for name in ("sampled_ids", "sampled_counts"))
            assert list(zip(ids[:kept].tolist(), counts[:kept].tolist(), strict=True)) == cells
            share = row[int(tokens[-4 + n])] / DRAWS
            assert np.exp(batch.column("label_logit")[n]) == pytest.approx(share)
    assert not found


def test_the_store_names_what_draws_do_not_tell(
    tmp_path: Path, imported: Callable[..., int]
) -> None:
    texts = foreign.examples(4)
    assert imported([record(tokens, num=2) for tokens in texts]) == 0
    store = TeacherStore.open(tmp_path / "store")
    capture = store.spec.identity["capture"]
    assert (capture["kind"], capture["num_samples"]) == ("sampled", DRAWS)
    assert capture["sample_seed"] is None
    known_as = store.spec.capture_fields
    assert (known_as["argmax"], known_as["label"]) == ("unknown", "within_topk")
    assert "rank" not in capture
    missed = sum(row[int(label)] == 0 for tokens in texts
                 for row, label in zip(drawn(tokens)[-2:], tokens[-2:], strict=True))  # fmt: skip
    counts = json.loads((tmp_path / "store" / "seal.json").read_text())["counts"]
    assert counts["capped_rows"] == missed
    assert not counts.get("resorted_rows")


def test_the_golden_stores_draws_come_back(tmp_path: Path) -> None:
    golden = TeacherStore.open(GOLDEN)
    for index in range(len(golden)):
        batch = golden.read([index])
        cells = {name: batch.column(name) for name in ("sampled_ids", "sampled_counts")}
        # As the store pads them: id 0 and count 0.
        rows = {name: values.tolist() for name, values in cells.items()}
        write_jsonl(tmp_path / "rows.jsonl", [{"input_ids": batch.token_ids.tolist(), **rows}])
        reading = Reading(None, None, pad_is_eos=False)
        (example,) = FORMATS["dataset"](str(tmp_path / "rows.jsonl"), reading).examples
        assert example.num_draws == golden.spec.num_samples
        assert example.is_response.tolist() == batch.is_response.tolist()
        cleaned = clean_cells(example.ids, example.logprobs, golden.spec.vocab_size)
        fields = draw_fields(cleaned, batch.labels, example.num_draws)
        for name in ("sampled_ids", "sampled_counts", "num_kept", "argmax", "label_rank"):
            np.testing.assert_array_equal(fields[name], batch.column(name), name)
        known = np.isfinite(batch.column("label_logit"))
        np.testing.assert_array_equal(np.isfinite(fields["label_logit"]), known)


def test_every_count_survives_its_logarithm() -> None:
    num = 8_192
    counts = [[count, num - count] for count in range(1, num, 61)]
    ids, shares, num_draws = drawn_shares([[5, 3]] * len(counts), counts)
    fields = draw_fields(clean_cells(ids, shares, 6), np.full(len(ids), 3), num_draws)
    assert num_draws == num
    assert fields["sampled_counts"][:, :2].tolist() == [sorted(row)[::-1] for row in counts]
    assert fields["sampled_ids"][:, :2].tolist() == [
        [5, 3] if five > three else [3, 5] for five, three in counts
    ]


def test_an_id_that_stands_twice_has_the_sum_of_its_counts() -> None:
    ids, shares, num = drawn_shares([[4, 9, 4, 0], None], [[1, 2, 1, 0], None])
    assert (ids.tolist(), num) == ([[4, 9], [-1, -1]], 4)
    np.testing.assert_allclose(np.exp(shares[0]), [0.5, 0.5])


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"sampled_counts": [[3, 1], [2, 1]]}, "rows of 3 and of 4 draws"),
        ({"sampled_counts": [[2, 1], [2, 1]]}, "3 draws a row, but the records before have 4"),
        ({"sampled_counts": [[3, 1]]}, "2 rows of ids, but 1 of counts"),
        ({"sampled_counts": [[3, 1, 1], [3, 1]]}, "row 0: ids and counts"),
        ({"sampled_counts": [[3, 1], [5, -1]]}, "'-1' is no count"),
        ({"sampled_counts": [[3, 1], [3, 1.5]]}, "'1.5' is no count"),
        ({"sampled_counts": [[9000, 1], [9000, 1]]}, "9,001 draws; expected at most 8,192"),
        ({"sampled_ids": [[1, 2], [3, "4"]]}, "'4' is no token id"),
        ({"sampled_ids": None}, "no column sampled_ids or target_token_ids"),
        ({"logprobs": [[-1.0, -2.0]] * 2}, "both sampled_counts and logprobs"),
        (
            {"sampled_counts": None, "logprobs": [[-1.0, -2.0]] * 2,
             "target_token_ids": [[1, 2]] * 2},
            "log-probabilities, but the records before have 4 draws",
        ),
    ],
)  # fmt: skip
def test_other_draws_are_refused_by_number(
    tmp_path: Path, change: dict[str, Any], fact: str
) -> None:
    good = {
        "input_ids": [4, 5, 6],
        "sampled_ids": [[1, 2], [3, 4]],
        "sampled_counts": [[3, 1], [2, 2]],
    }
    write_jsonl(tmp_path / "rows.jsonl", [good, {**good, **change}])
    reading = Reading.of(tiny_tokenizer(), pad_is_eos=False)
    with pytest.raises(ValueError, match="record 1: ") as caught:
        list(FORMATS["dataset"](str(tmp_path / "rows.jsonl"), reading).examples)
    assert fact in str(caught.value)


def test_mistakes_are_one_line(
    imported: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    good = record(foreign.examples(1)[0], num=2)
    assert imported([good], "--encoding", "compact") == 2
    assert "--encoding compact: expected one of fitted2, exact" in capsys.readouterr().err
    outside = {**good, "sampled_ids": [[60], [4]], "sampled_counts": [[20], [20]]}
    assert imported([outside]) == 2
    err = capsys.readouterr().err
    assert "has 51 ids" in err or "has 50 ids" in err
    assert "token id 60" in err


@pytest.mark.slow
def test_a_student_trains_from_draws_without_the_teachers_argmax(
    tmp_path: Path, imported: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "student")
    assert imported([record(tokens, num=3) for tokens in foreign.examples(6)]) == 0
    assert "--accept-imported --objective dist" in capsys.readouterr().out
    words = ["train", "--store", str(tmp_path / "store"), "--student", str(tmp_path / "student")]
    words += ["--steps", "1", "--global-batch-size", "8", "--accept-imported"]
    for objective in ("cat-dist", "cat-xent", "cat-dist-l", "cat-xent-l"):
        assert main([*words, "--objective", objective, "--out", str(tmp_path / "no")]) == 2
        err = capsys.readouterr().err
        assert "capture.argmax is unknown" in err, objective
    assert main([*words, "--objective", "dist", "--out", str(tmp_path / "run")]) == 0
