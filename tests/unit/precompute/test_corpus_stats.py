"""Statistics of a corpus against counts by hand; repeats, and every policy."""

import json

import numpy as np
import pytest
from helpers.captures import config_for
from helpers.tiny import save_tiny

from caskd.cli.main import main
from caskd.precompute import precompute
from caskd.precompute.planning import check_non_finite
from caskd.precompute.planning.corpus_stats import CorpusStats, bars, histogram, quantiles
from caskd.precompute.planning.planner import plan
from caskd.store.corpus import TokenizedExample
from caskd.store.errors import TeacherError, UsageError
from caskd.store.read import TeacherStore
from caskd.store.verify import verify_store

RECORDS = [
    {"prompt": "ab", "response": "cd"},
    {"prompt": "ab", "response": ""},
    {"prompt": "ab", "response": "cd", "task": "another"},
    {"prompt": "a", "response": "bcd"},  # the same tokens, another response
    {"prompt": "abc", "response": "d" * 20},
    {"prompt": "ab", "response": "cd"},
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "big")


def planned(config, capsys):
    """What `caskd plan --json` prints, all of it."""
    words = ["plan", "--teacher", config.teacher, "--data", *config.data, "--store", config.store]
    options = {
        "--top-k": config.top_k, "--shard-rows": config.shard_rows, "--on-long": config.on_long,
        "--max-length": config.max_length, "--on-duplicate": config.on_duplicate,
        "--encoding": config.encoding,
    }  # fmt: skip
    for flag, value in options.items():
        words += [flag, str(value)]
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_facts_of_a_corpus(teacher, tmp_path, capsys):
    config = config_for(teacher, tmp_path, RECORDS, max_length=12, on_long="skip")
    facts = planned(config, capsys)
    assert facts["examples"] == {"ok": 4, "empty": 1, "too_long": 1}
    assert facts["first"] == {"ok": 0, "empty": 1, "duplicate": 2, "too_long": 4}
    assert facts["longest_over_limit"] == 3 + 20 + 1
    assert facts["duplicates"] == {"examples": 2, "rows": 6}
    assert facts["geometry"]["num_rows"] == 3 + 3 + 4 + 3
    assert facts["labels"]["distinct"] == 4  # b c d and EOS
    assert facts["labels"]["share_of_vocabulary"] == 4 / 50
    assert facts["lengths"]["response"] == {
        "min": 3, "median": 3, "p90": 4, "p99": 4, "max": 4, "mean": 3.2,
    }  # fmt: skip
    assert facts["histogram"] == [
        {"from": 5, "to": 8, "examples": 4},
        {"from": 9, "to": 16, "examples": 0},
        {"from": 17, "to": 32, "examples": 1},
    ]
    assert facts["forecast"] is None
    again = planned(config, capsys)
    assert again["reused"]
    assert again["duplicates"] == facts["duplicates"]
    assert again["examples"] == facts["examples"]
    assert again["labels"] == facts["labels"]


def test_a_plan_reads_like_one(teacher, tmp_path, capsys):
    plan(config_for(teacher, tmp_path, RECORDS, max_length=12, on_long="skip"))
    said = capsys.readouterr().out
    for line in (
        "1 too long (too_long, no rows), the first is record 4",
        "1 without a response token (empty, no rows), the first is record 1",
        "2 exact repeats of earlier examples, the first is record 2; they take 6 rows, 46.2%",
        "4 distinct tokens, 8.0% of the vocabulary",
        "13 in 1 shard of 128",
        "5-8  ######################################## 4",
    ):
        assert line in said


def test_skipped_repeats_have_no_rows_and_the_seal_counts_them(teacher, tmp_path, capsys):
    config = config_for(
        teacher, tmp_path, RECORDS, max_length=12, on_long="skip", on_duplicate="skip"
    )
    facts = planned(config, capsys)
    assert facts["examples"] == {"ok": 2, "empty": 1, "too_long": 1, "duplicate": 2}
    assert facts["duplicates"] == {"examples": 2, "rows": 6}
    store = precompute(config)
    assert store is not None
    assert store.seal["statuses"] == facts["examples"]
    assert sum(store.seal["statuses"].values()) == len(RECORDS)
    assert store.row_counts().tolist() == [3, 0, 0, 4, 0, 0]
    assert verify_store(config.store, full=True).ok
    capsys.readouterr()
    assert planned(config, capsys)["examples"] == facts["examples"]


def test_repeats_are_kept_by_default(teacher, tmp_path):
    store = precompute(config_for(teacher, tmp_path, RECORDS, max_length=12, on_long="truncate"))
    assert store is not None
    assert store.seal["statuses"] == {"ok": 4, "empty": 1, "truncated": 1}
    assert isinstance(store, TeacherStore)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"max_length": 12},
            r"1 of 6 examples is longer than 12 tokens \(the longest has 24\), the first is "
            r"record 4; .*--on-long truncate",
        ),
        ({"on_empty": "error"}, "1 of 6 examples is without a response .* record 1; .*--on-empty"),
    ],
)
def test_policies_that_refuse_name_the_count_and_leave_nothing(teacher, tmp_path, changes, said):
    config = config_for(teacher, tmp_path, RECORDS, **changes)
    with pytest.raises(UsageError, match=said) as caught:
        plan(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("share", "stops_from"), [(0.0, 1), (0.001, 11), (0.5, 5001), (1.0, None)])
def test_how_many_non_finite_examples_stop_a_capture(share, stops_from):
    for count in (0, 1, 10, 11, 5000, 5001, 10_000):
        if stops_from is not None and count >= stops_from:
            with pytest.raises(TeacherError, match=f"in {count:,} of 10,000 examples") as caught:
                check_non_finite(count, 10_000, share)
            assert caught.value.exit_code == 1
        else:
            check_non_finite(count, 10_000, share)


def test_lengths_by_the_book():
    lengths = np.array([1, 2, 3, 4, 5, 8, 9, 1000])
    assert [(b["from"], b["to"], b["examples"]) for b in histogram(lengths)] == [
        (1, 1, 1), (2, 2, 1), (3, 4, 2), (5, 8, 2), (9, 16, 1), (17, 32, 0), (33, 64, 0),
        (65, 128, 0), (129, 256, 0), (257, 512, 0), (513, 1024, 1),
    ]  # fmt: skip
    assert quantiles(lengths)["median"] == 5
    assert quantiles(lengths)["max"] == quantiles(lengths)["p99"] == 1000
    assert histogram(np.zeros(0, np.int64)) == bars([]) == []


def test_labels_of_many_examples_are_all_counted(monkeypatch):
    monkeypatch.setattr("caskd.precompute.planning.corpus_stats.PENDING_LABELS", 10)
    rng = np.random.default_rng(0)
    stats, expected = CorpusStats(30), np.zeros(30, np.int64)
    examples = []
    for n in range(40):
        tokens = rng.integers(0, 30, 5).astype(np.uint32)
        examples.append(TokenizedExample(tokens, np.array([0, 0, 1, 1, 1], np.uint8), "ok", n, ""))
        expected += np.bincount(tokens[2:], minlength=30)
    assert len(list(stats.observe(examples, skip_duplicates=True))) == 40
    np.testing.assert_array_equal(stats._label_counts, expected)
    assert stats.facts()["labels"]["distinct"] == np.count_nonzero(expected)
