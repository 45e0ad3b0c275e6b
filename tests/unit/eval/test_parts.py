"""Parts of a predictions file: they join to the same bytes, whoever wrote them and how often."""

import itertools

import pytest

from caskd.eval.answers import read_predictions
from caskd.eval.inference.parts import Parts, check_out
from caskd.eval.inference.predictor import plan_parts
from caskd.store.errors import IdentityError, UsageError

REQUEST = {
    "model": {"name": "m", "num_parameters": 3},
    "quality": "exact_match",
    "decoding": {"max_new_tokens": 4},
}
NUM_PARTS, PER_PART = 5, 2


def rows(part):
    """Longest prompts come first, so that parts do not hold neighbors."""
    return [row(place) for place in (part, 9 - part)]


def row(place):
    return {
        "example_id": str(place), "source_index": place, "prompt_digest": f"p{place}",
        "question_digest": f"q{place}", "task": "", "text": "x", "token_ids": [place],
        "token_logprobs": [-0.5 * place], "reference": "x", "quality": 1.0, "prompt_tokens": 1,
        "output_tokens": 1, "seconds": 0.25, "token_margins": [1.0],
        "references": ["x", "y"] if place == 3 else None,
    }  # fmt: skip


def opened(tmp_path, name="a", request=REQUEST):
    return Parts(tmp_path / f"{name}.parquet", request, NUM_PARTS)


def fill(parts, wanted=range(NUM_PARTS)):
    for part in wanted:
        parts.write(part, rows(part))


def test_any_order_of_writing_gives_the_same_file(tmp_path):
    contents = set()
    for number, order in enumerate(itertools.permutations(range(NUM_PARTS))):
        if number % 17 == 0:
            parts = opened(tmp_path, str(number))
            fill(parts, order)
            assert parts.join() is not None
            contents.add((tmp_path / f"{number}.parquet").read_bytes())
            assert not parts.folder.exists()
    assert len(contents) == 1
    read = read_predictions(str(tmp_path / "0.parquet"))
    assert read.strings("example_id") == [str(place) for place in range(10)]
    assert read.references()[2:4] == [["x"], ["x", "y"]]
    assert "token_margins" in read.columns.column_names
    assert "hidden" not in read.columns.column_names  # nobody has one


def test_a_second_start_finds_what_the_first_finished(tmp_path):
    fill(opened(tmp_path), [0, 3])
    again = opened(tmp_path)
    assert again.missing() == [1, 2, 4]
    assert again.join() is None
    fill(again, again.missing())
    assert len(again.join()) == 10
    third = opened(tmp_path)
    assert third.missing() == []
    assert len(third.join()) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_workers_share_all_parts_and_none_twice(tmp_path):
    parts = opened(tmp_path)
    shares = [parts.missing(worker, 3) for worker in range(3)]
    assert sorted(itertools.chain(*shares)) == list(range(NUM_PARTS))
    for share in shares:
        assert parts.join() is None
        fill(opened(tmp_path), share)
    assert len(parts.join()) == 10


def test_the_first_of_two_writers_of_a_part_stays(tmp_path):
    parts = opened(tmp_path)
    fill(parts)
    parts.write(0, [{**one, "seconds": 9.0} for one in rows(0)])
    assert set(parts.join().numbers("seconds")) == {0.25}


def test_a_worker_that_comes_after_the_join_loses_nothing(tmp_path):
    slow, fast = opened(tmp_path), opened(tmp_path)
    fill(fast)
    fast.join()
    assert slow.missing() == []
    assert len(slow.join()) == 10


def test_a_draft_that_a_kill_left_is_no_part(tmp_path):
    parts = opened(tmp_path)
    (parts.folder / ".00000.parquet.0123").write_bytes(b"half")
    assert parts.missing() == list(range(NUM_PARTS))


def test_another_request_is_refused_with_the_difference(tmp_path):
    fill(opened(tmp_path), [0])
    other = {**REQUEST, "decoding": {"max_new_tokens": 5}}
    with pytest.raises(IdentityError, match=r"max_new_tokens is 4 there but 5 now; .*rerun"):
        opened(tmp_path, request=other)
    fill(opened(tmp_path))
    opened(tmp_path).join()
    with pytest.raises(IdentityError, match=r"another request, decoding\.max_new_tokens is 4"):
        opened(tmp_path, request=other)


def test_parts_of_another_text_rule_are_refused(tmp_path):
    fill(opened(tmp_path), [0])
    with pytest.raises(
        IdentityError, match=r"another request\b.*\btext\b.* None.*'rule': 2.*rerun"
    ):
        opened(tmp_path, request={**REQUEST, "text": {"rule": 2}})


def described(digest, **others):
    model = {**REQUEST["model"], "config_digest": digest, "weights_digest": "w", **others}
    return {**REQUEST, "model": model}


@pytest.mark.parametrize("finished", [False, True])
def test_a_config_digest_of_an_older_caskd_is_accepted_without_comparing(tmp_path, finished):
    older, newer = described("a" * 32), described("b" * 64)
    fill(opened(tmp_path, request=older), range(NUM_PARTS if finished else 2))
    if finished:
        opened(tmp_path, request=older).join()
    again = opened(tmp_path, request=newer)
    fill(again, again.missing())
    assert len(again.join()) == PER_PART * NUM_PARTS
    with pytest.raises(IdentityError, match=r"model\.weights_digest .*'w'.*'v'"):
        opened(tmp_path, request=described("b" * 64, weights_digest="v"))


def test_another_config_is_refused(tmp_path):
    fill(opened(tmp_path, request=described("a" * 64)), [0])
    with pytest.raises(IdentityError, match=r"model\.config_digest"):
        opened(tmp_path, request=described("b" * 64))


def test_a_file_that_is_scored_otherwise_needs_no_model(tmp_path):
    fill(opened(tmp_path))
    opened(tmp_path).join()
    with pytest.raises(IdentityError, match="caskd eval --task-metric"):
        opened(tmp_path, request={**REQUEST, "quality": "chrf"})


def test_a_damaged_part_is_named(tmp_path):
    parts = opened(tmp_path)
    fill(parts)
    (parts.folder / "00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"00002\.parquet\b.* damaged.*remove it and rerun"):
        parts.join()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "a.parquet.parts").mkdir()
    (tmp_path / "a.parquet.parts" / "request.json").write_text("mine")
    with pytest.raises(UsageError, match=r"caskd predict; .*remove it"):
        opened(tmp_path)


def test_a_file_that_is_no_predictions_file_is_left_alone(tmp_path, predictions_file):
    (tmp_path / "b.parquet").write_text("mine")
    with pytest.raises(UsageError, match=r"not a predictions file; .*remove it"):
        check_out(tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"ends in \.parquet"):
        check_out(tmp_path / "out.csv")
    predictions_file("a", [1])
    check_out(tmp_path / "a.parquet")


@pytest.mark.parametrize(("count", "size"), [(1, 4), (10, 4), (4003, 2)])
def test_the_plan_holds_every_example_once(count, size):
    plan = plan_parts([place % 7 for place in range(count)], size)
    assert len(plan) <= 1000
    places = [place for part in plan for batch in part for place in batch]
    assert sorted(places) == list(range(count))
    assert max(len(batch) for part in plan for batch in part) <= size
