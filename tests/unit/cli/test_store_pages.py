"""Pages of stores: `--html` of store info, store card and store show."""

from pathlib import Path

import pytest
from helpers import stores

from caskd.cli.main import main
from caskd.cli.store_pages import store_page
from caskd.store.inspect import measure_quality, store_info
from caskd.store.read import TeacherStore
from caskd.store.write import plan_store

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TeacherStore:
    return stores.make_store(tmp_path_factory.mktemp("pages") / "s")


def test_info_writes_the_facts_without_a_pass_over_the_rows(
    store: TeacherStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "info.html"
    assert main(["store", "info", str(store.root), "--html", str(page)]) == 0
    assert capsys.readouterr().out.strip() == f"wrote {page}"
    text = page.read_text(encoding="utf-8")
    assert f"Sealed: {store.spec.num_rows} rows of 20 examples" in text
    assert all(f">{name}<" in text for name in store_info(store.root)["fields"])
    assert store.spec.vocab_digest in text
    assert "Teacher quality" not in text
    assert text.count("data:image/svg+xml") == 2  # one picture, in light and dark
    assert "default-src 'none'" in text
    assert main(["store", "info", str(store.root), "--html", str(page)]) == 2
    assert f"--html {page}: file already exists" in capsys.readouterr().err


def test_card_measures_the_teacher_and_keeps_the_license(
    store: TeacherStore, tmp_path: Path
) -> None:
    page = tmp_path / "card.html"
    assert main(["store", "card", str(store.root), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    quality = measure_quality(store)
    assert quality.accuracy is not None
    assert f"In {quality.accuracy:.1%} of the rows the label is the teacher" in text
    for name, count in zip(quality.rank_names(), quality.ranks, strict=True):
        share = f'<td class="" data-v="{count / quality.num_rows!r}">'
        assert (
            f'<td class="text">{name}</td><td class="" data-v="{count}">{count:,}</td>{share}'
            in text
        )
    assert "<h2>License</h2>" in text
    assert "Not stated yet." in text


def test_an_unsealed_store_says_how_much_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    plan_store(path, stores.identity(), stores.examples(), shard_rows=32, vocab=stores.VOCAB)
    stores.fill(path, only=[1])
    text = store_page(str(path)).decode()
    shards = TeacherStore.open(path, allow_unsealed=True).spec.num_shards
    assert "Not sealed" in text
    assert f"1 of {shards} shards are committed" in text


def test_no_text_of_a_store_becomes_markup(tmp_path: Path) -> None:
    teacher = {"name": HOSTILE, "revision": HOSTILE, "weights_digest": "00", "adapter": None}
    identity = {**stores.identity(), "teacher": teacher}
    plan_store(tmp_path / "s", identity, stores.examples(), shard_rows=64, vocab=stores.VOCAB)
    text = store_page(str(tmp_path / "s"), license_text=HOSTILE).decode()
    assert text.count("<script>") == 1  # the page's own
    assert text.count("&lt;script&gt;alert") >= 3
