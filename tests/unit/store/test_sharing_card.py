"""The card: its numbers are right, a written license stays, untrusted metadata is harmless."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.stores import make_store, tree

from caskd.cli.main import main
from caskd.store import TeacherStore, verify_store
from caskd.store.inspect import card, license_note, measure_quality
from caskd.store.inspect.quality import TeacherQuality, rank_bins, rank_names
from caskd.store.inspect.store_card import NO_LICENSE


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    return make_store(tmp_path / "store", num=40)


def test_quality_by_hand(store: TeacherStore) -> None:
    batch = store.read(range(len(store)))
    log_p = (batch.column("label_logit") - batch.column("logsumexp")).astype(np.float64)
    quality = measure_quality(store)
    assert quality.num_rows == store.spec.num_rows
    assert quality.accuracy == (batch.labels == batch.argmax).mean()
    assert quality.perplexity == pytest.approx(np.exp(-log_p.mean()), rel=1e-6)
    assert quality.mean_tail_mass == pytest.approx(batch.column("tail_mass").mean(), rel=1e-6)
    ranks = batch.column("label_rank")
    assert quality.ranks[0] == (ranks == 0).sum()
    assert quality.ranks[1] == (ranks == 1).sum()
    assert quality.ranks[2] == ((ranks == 2) | (ranks == 3)).sum()
    assert sum(quality.ranks) == store.spec.num_rows


def test_bins_of_ranks() -> None:
    ranks = np.array([0, 1, 2, 3, 4, 7, 8, 2**32 - 1], np.uint32)
    assert rank_bins(ranks).tolist() == [0, 1, 2, 2, 3, 3, 4, 32]
    assert rank_names(5) == ["0", "1", "2-3", "4-7", "8-15"]


def test_the_histogram_has_the_share_of_each_rank(store: TeacherStore) -> None:
    """Each printed bin against a count over the ranks that its label spans."""
    ranks = store.read(range(len(store))).column("label_rank")
    lines = measure_quality(store).histogram().splitlines()[2:]
    assert [line.split()[0] for line in lines[:4]] == ["0", "1", "2-3", "4-7"]
    assert len(lines) == 1 + int(ranks.max()).bit_length()
    counts, widths = [], []
    for line in lines:
        label, share, *bar = line.split()
        low, _, high = label.partition("-")
        inside = (ranks >= int(low)) & (ranks <= int(high or low))
        assert share == f"{inside.mean():.2%}"
        counts.append(int(inside.sum()))
        widths.append(len("".join(bar)))
    assert widths == [40 * count // max(counts) for count in counts]


def test_a_histogram_by_hand() -> None:
    quality = TeacherQuality(8, 0.0, None, ranks=(4, 0, 2, 1, 1))
    assert quality.histogram().splitlines()[2:] == [
        "       0   50.00%  " + "#" * 40,
        "       1    0.00%",
        "     2-3   25.00%  " + "#" * 20,
        "     4-7   12.50%  " + "#" * 10,
        "    8-15   12.50%  " + "#" * 10,
    ]


def test_quality_does_not_depend_on_the_batch(
    store: TeacherStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_quality(store)
    monkeypatch.setattr("caskd.store.inspect.quality.EXAMPLES_AT_ONCE", 7)
    parts = measure_quality(store)
    assert parts.ranks == whole.ranks
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-12)


def test_the_card_at_seal_is_cheap_and_has_the_main_facts(store: TeacherStore) -> None:
    text = (store.root / "README.md").read_text()
    assert "A store reveals its corpus" in text
    assert "caskd train --store" in text
    assert store.digest in text
    assert NO_LICENSE in text
    assert "perplexity" not in text


def test_printing_changes_nothing_and_writing_only_the_card(
    store: TeacherStore, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(store.root)
    assert main(["store", "card", str(store.root)]) == 0
    printed = capsys.readouterr().out
    assert tree(store.root) == before
    quality = measure_quality(store)
    assert f"{quality.accuracy:.2%}" in printed
    assert f"{quality.perplexity:,.3f}" in printed
    assert "Rank of the label" in printed
    assert main(["store", "card", str(store.root), "--write"]) == 0
    after = tree(store.root)
    assert {name for name in before if before[name] != after[name]} == {"README.md"}
    assert after["README.md"].decode().strip() == printed.strip()
    assert verify_store(store.root, full=True).ok


def test_a_written_license_stays(store: TeacherStore) -> None:
    path = store.root / "README.md"
    own = "Corpus: CC-BY 4.0.\n\nTeacher: ask legal@example.org.\n\n### Details\n\nnone"
    path.write_text(path.read_text().replace(NO_LICENSE, own))
    for _ in range(2):
        assert main(["store", "card", str(store.root), "--write"]) == 0
    text = path.read_text()
    assert license_note(text) == own
    assert text.count("CC-BY") == 1
    assert NO_LICENSE not in text


def test_a_card_without_the_section_gets_it() -> None:
    assert license_note("") == license_note("# something else") == NO_LICENSE
    assert license_note("# x\n\n## License\n\n## Use") == NO_LICENSE


HOSTILE = "a\x1b[31m|b](javascript:1)<script>\n## License\n\nfree`|"


def test_metadata_is_neither_markup_nor_control(store: TeacherStore) -> None:
    identity = {
        **store.spec.identity,
        "teacher": {**store.spec.identity["teacher"], "name": HOSTILE},
    }
    spec = replace(store.spec, identity=identity, tasks=(HOSTILE,))
    text = card(spec, store.seal)
    assert "\x1b" not in text
    assert "<script>" not in text.replace("\\<script", "")
    assert text.count("\n## License\n") == 1
    lines = [line for line in text.splitlines() if "javascript" in line]
    assert len(lines) == 3  # the heading, the teacher and the tasks, each still one line
    for line in lines[1:]:
        assert line.replace("\\|", "").count("|") == 3
