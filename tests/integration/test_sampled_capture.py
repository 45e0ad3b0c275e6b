"""A capture of draws against draws from a plain forward pass of the same model."""

import numpy as np
import pytest
import torch
from helpers.captures import RECORDS, config_for, sealed_files
from helpers.tiny import save_tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.cli.main import main
from caskd.precompute import precompute
from caskd.precompute.rows.sampling import uniforms
from caskd.store import TeacherStore, verify_store
from caskd.store.errors import IdentityError
from caskd.store.write import ShardExample

NUM_SAMPLES, SEED = 30, 5


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "big", vocab_size=55)


def sampled_config(teacher, folder, records=RECORDS, **changes):
    folder.mkdir(exist_ok=True)
    base = {"top_k": None, "sample": NUM_SAMPLES, "sample_seed": SEED}
    return config_for(teacher, folder, records, **{**base, **changes})


@pytest.fixture(scope="module")
def store(teacher, tmp_path_factory):
    return precompute(sampled_config(teacher, tmp_path_factory.mktemp("one") / "s"))


def plain_counts(teacher, batch, index, shift=0):
    """Counts [rows, V] of one example: no batch, no tiles, float64, one inverse CDF a draw."""
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    num_ids = len(AutoTokenizer.from_pretrained(teacher))
    with torch.inference_mode():
        logits = model(torch.tensor([batch.token_ids.astype(np.int64).tolist()])).logits[0]
    places = np.clip(batch.logit_positions + shift, 0, len(logits) - 1)
    p = torch.softmax(logits[places, :num_ids].double(), 1).numpy()
    rows = len(places)
    numbers = uniforms([ShardExample(index, batch.token_ids, batch.is_response, 0, rows)],
                       NUM_SAMPLES, SEED)  # fmt: skip
    counts = np.zeros((rows, num_ids), np.int64)
    for n in range(rows):
        drawn = np.searchsorted(p[n].cumsum(), numbers[n], side="right")
        np.add.at(counts[n], np.minimum(drawn, num_ids - 1), 1)
    return counts


def stored_counts(batch, num_ids):
    counts = np.zeros((batch.num_rows, num_ids), np.int64)
    rows = np.arange(batch.num_rows)[:, None]
    np.add.at(counts, (rows, batch.sampled_ids), batch.sampled_counts)
    return counts


def moved_draws(store, teacher, indices, shift=0):
    """Share of all draws that fell on another id than in a plain forward."""
    moved = total = 0
    for index in indices:
        batch = store.read([index])
        wanted = plain_counts(teacher, batch, index, shift)
        moved += int(np.abs(stored_counts(batch, wanted.shape[1]) - wanted).sum()) // 2
        total += int(wanted.sum())
    return moved / total


def test_draws_are_those_of_a_plain_forward(store, teacher):
    """A draw may move where rounding shifts the edge between two ids: a few in a million."""
    assert store.sealed
    assert store.spec.num_shards > 2
    assert moved_draws(store, teacher, range(0, len(store), 4)) <= 1e-3
    assert not verify_store(store.root, full=True).problems


@pytest.mark.parametrize("shift", [1, -1])
def test_draws_of_the_neighbouring_position_are_seen_to_differ(store, teacher, shift):
    longest = [int(store.row_counts().argmax())]
    assert moved_draws(store, teacher, longest, shift) > 0.1


def rows_of(store):
    batch = store.read(range(len(store)))
    return {name: getattr(batch, name) for name in store.row_fields}


@pytest.mark.parametrize(
    "changes",
    [{"token_budget": 1}, {"token_budget": 5000}, {"shard_rows": 512}, {"encoding": "fitted2"}],
    ids=str,
)
def test_draws_are_the_same_whatever_the_batch_shard_or_encoding(store, teacher, tmp_path, changes):
    other = rows_of(precompute(sampled_config(teacher, tmp_path / "s", **changes)))
    for name, values in rows_of(store).items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(other[name], values, atol=2e-5)
        else:
            assert (other[name] != values).mean() <= 1e-3, name


def test_another_seed_draws_others_and_is_another_store(store, teacher, tmp_path):
    config = sampled_config(teacher, tmp_path / "s", sample_seed=SEED + 1)
    other = rows_of(precompute(config))
    ours = rows_of(store)
    assert (other["sampled_counts"] != ours["sampled_counts"]).any(axis=1).mean() > 0.5
    for name in ("argmax", "label_rank"):
        np.testing.assert_array_equal(other[name], ours[name])
    for changes, said in (
        ({"sample_seed": SEED}, "sample_seed is 6 there, but 5 here"),
        ({"sample": 31, "sample_seed": 6}, "num_samples is 30 there, but 31 here"),
        ({"sample": None, "sample_seed": 0, "top_k": 8}, "kind is 'sampled' there, but 'topk'"),
    ):
        with pytest.raises(IdentityError, match=said):
            precompute(sampled_config(teacher, tmp_path / "s", **changes))


def test_a_run_that_stopped_goes_on_to_the_same_bytes(teacher, tmp_path, monkeypatch):
    whole = precompute(
        sampled_config(teacher, tmp_path / "a", deterministic=True, encoding="fitted2")
    )
    config = sampled_config(teacher, tmp_path / "b", deterministic=True, encoding="fitted2")
    from caskd.precompute.workers import run

    commits = []
    commit = run.StoreWriter.commit

    def stop_after_two(self, *args):
        if len(commits) == 2:
            raise KeyboardInterrupt
        commits.append(commit(self, *args))

    with monkeypatch.context() as patch:
        patch.setattr(run.StoreWriter, "commit", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            precompute(config)
    assert TeacherStore.open(config.store, allow_unsealed=True).num_committed_shards() == 2
    precompute(config)
    assert sealed_files(config.store) == sealed_files(str(whole.root))


def test_a_teacher_with_nan_leaves_rows_without_draws(teacher, tmp_path, capsys):
    broken = save_tiny(tmp_path / "broken", tie=False)
    weights = load_file(broken / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(broken)
    weights["model.embed_tokens.weight"][tokenizer.convert_tokens_to_ids("z")] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    records = [{"prompt": "a", "response": "bb"}, {"prompt": "a", "response": "bzb"}]
    store = precompute(sampled_config(broken, tmp_path / "s", records, max_non_finite=1.0))
    batch = store.read([0, 1])
    assert (batch.num_kept > 0).tolist() == [True] * 3 + [False] * 4
    assert not batch.sampled_counts[3:].any()
    assert store.seal["statuses"] == {"ok": 1, "non_finite": 1}
    assert "NaN or Inf in 1 examples" in capsys.readouterr().out
    assert not verify_store(store.root, full=True).problems


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sample", "50", "--top-k", "64"], "--sample 50 and --top-k 64: both were given"),
        (
            ["--sample", "50", "--min-mass", "0.9"],
            "--sample 50 and --min-mass 0.9: both were given",
        ),
        (["--sample", "0"], "--sample 0: expected 1 to 8,192"),
        (["--sample", "9000"], "--sample 9000: expected 1 to 8,192"),
        (["--sample-seed", "3"], "--sample-seed 3: was given without --sample"),
        (["--sample", "5", "--sample-seed", "-1"], "--sample-seed -1"),
    ],
)
def test_mistakes_are_one_line(teacher, tmp_path, capsys, flags, said):
    config = sampled_config(teacher, tmp_path)
    words = ["precompute", "--teacher", str(teacher), "--data", *config.data]
    assert main([*words, "--store", str(tmp_path / "s"), *flags]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "s").exists()
