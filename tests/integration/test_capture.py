"""A whole capture against a plain forward pass."""

import numpy as np
import pytest
import torch
from helpers.captures import RECORDS, TOP_K, config_for
from helpers.tiny import save_tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.precompute import precompute
from caskd.store.corpus import Columns, prompt_ids
from caskd.store.errors import TeacherError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    # Six columns more than the tokenizer has ids: the padding that must be cut off.
    return save_tiny(tmp_path_factory.mktemp("models") / "big", vocab_size=55)


def plain_logits(teacher, token_ids):
    """What the teacher says at every position of one example: no batch, no padding, no tiles."""
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    num_ids = len(AutoTokenizer.from_pretrained(teacher))
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids.astype(np.int64).tolist()])).logits[0]
    return logits[:, :num_ids].double().numpy()


def differences(store, teacher, index, *, shift_positions=0, shift_labels=0):
    """Largest errors of one example's rows against the plain forward, by field."""
    batch = store.read([index])
    logits = plain_logits(teacher, batch.token_ids)
    last = len(logits) - 1
    z = logits[np.clip(batch.logit_positions + shift_positions, 0, last)]
    labels = batch.token_ids[np.clip(batch.logit_positions + 1 + shift_labels, 0, last)]
    order = np.lexsort((np.broadcast_to(np.arange(z.shape[1]), z.shape), -z))
    top = np.take_along_axis(z, order, axis=1)
    lse = np.logaddexp.reduce(z, axis=1)
    own = z[np.arange(len(z)), labels]
    tail = np.exp(top[:, TOP_K:] - lse[:, None]).sum(axis=1)
    rank = np.array([np.flatnonzero(o == y)[0] for o, y in zip(order, labels, strict=True)])
    return {
        "topk_ids": (batch.topk_ids != order[:, :TOP_K]).mean(),
        "topk_logits": np.abs(batch.topk_logits - top[:, :TOP_K]).max(),
        "logsumexp": np.abs(batch.logsumexp - lse).max(),
        "label_logit": np.abs(batch.label_logit - own).max(),
        "tail_mass": np.abs(batch.tail_mass / tail - 1).max(),
        "argmax": (batch.argmax != order[:, 0]).mean(),
        "label_rank": (batch.label_rank != rank).mean(),
        "labels": (batch.labels != labels).mean(),
    }


@pytest.mark.parametrize("token_budget", [1, 90, 5000])
def test_rows_equal_a_plain_forward_whatever_the_batch(teacher, tmp_path, token_budget):
    store = precompute(config_for(teacher, tmp_path, token_budget=token_budget))
    assert store.sealed
    assert store.spec.num_shards > 2
    for index in range(len(store)):
        for name, error in differences(store, teacher, index).items():
            assert error <= 2e-5, (index, name)


@pytest.mark.parametrize("shift", [{"shift_positions": 1}, {"shift_positions": -1}])
def test_rows_of_the_neighbouring_position_are_seen_to_differ(teacher, tmp_path, shift):
    store = precompute(config_for(teacher, tmp_path))
    errors = differences(store, teacher, int(store.row_counts().argmax()), **shift)
    assert all(errors[name] > 1e-2 for name in errors if name != "labels")


@pytest.mark.parametrize("shift", [1, -1])
def test_labels_of_the_neighbouring_position_are_seen_to_differ(teacher, tmp_path, shift):
    store = precompute(config_for(teacher, tmp_path))
    index = int(store.row_counts().argmax())
    errors = differences(store, teacher, index, shift_labels=shift)
    assert all(errors[name] > 0.1 for name in ("labels", "label_logit", "label_rank"))
    # Only the label's own fields follow the label.
    assert max(errors[name] for name in ("topk_ids", "argmax")) == 0


def test_a_mask_that_is_shifted_by_one_is_seen_to_differ(teacher, tmp_path):
    """One prompt token more or less taken for response is one row more or less."""
    store = precompute(config_for(teacher, tmp_path))
    batch = store.read(range(len(store)))
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    for index, record in enumerate(RECORDS):
        tokens = slice(*batch.token_offsets[index : index + 2])
        mask, ids = batch.is_response[tokens], batch.token_ids[tokens]
        prompt = prompt_ids(tokenizer, record, Columns())
        assert ids[: len(prompt)].tolist() == prompt
        assert mask.tolist() == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
        positions = batch.logit_positions[slice(*batch.row_offsets[index : index + 2])]
        assert positions.tolist() == list(range(len(prompt) - 1, len(ids) - 1))


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
CONVERSATIONS = [
    [("user", "hi"), ("assistant", "hello")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "dd")],
]


@pytest.mark.parametrize(
    ("records", "prompt"),
    [
        ([{"text": "abc"}, {"text": "hello there"}], ""),
        (
            [
                {"messages": [{"role": r, "content": c} for r, c in turns]}
                for turns in CONVERSATIONS
            ],
            "user:hi</s>\nassistant:",
        ),
    ],
)
def test_text_and_messages(teacher, tmp_path, records, prompt):
    folder = save_tiny(tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    store = precompute(config_for(folder, tmp_path, records))
    for index, record in enumerate(records):
        for name, error in differences(store, folder, index).items():
            assert error <= 2e-5, (index, name)
        asked = prompt_ids(tokenizer, record, Columns())
        batch = store.read([index])
        assert batch.token_ids[: len(asked)].tolist() == asked
        assert batch.logit_positions[-1] == len(batch.token_ids) - 2
    first = prompt_ids(tokenizer, records[0], Columns())
    assert "".join(tokenizer.convert_ids_to_tokens(first)) == prompt


DOCUMENTS = ["abc", "hello there, who is it?", "a", "one more document. " * 9, "zz"]


@pytest.mark.parametrize("bos", [False, True])
def test_documents_never_leak_into_each_other(tmp_path, bos):
    """Each document's rows are those of a corpus of it alone, in any batch and any company."""
    folder = save_tiny(tmp_path / "big")
    if bos:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        backend.save(str(folder / "tokenizer.json"))
    records = [{"text": text} for text in DOCUMENTS]
    together = precompute(config_for(folder, tmp_path, records, shard_rows=256, token_budget=4000))
    for index, record in enumerate(records):
        (tmp_path / str(index)).mkdir()
        config = config_for(folder, tmp_path / str(index), [record], shard_rows=256)
        alone = precompute(config).read([0])
        batch = together.read([index])
        np.testing.assert_array_equal(batch.token_ids, alone.token_ids)
        np.testing.assert_array_equal(batch.labels, alone.labels)
        assert (batch.token_ids[0] == 1) == bos  # <s>
        # With BOS every token has a row and EOS; without, the first has nothing before it.
        assert len(batch.labels) == len(record["text"]) + bos
        np.testing.assert_array_equal(batch.topk_ids, alone.topk_ids)
        np.testing.assert_allclose(batch.topk_logits, alone.topk_logits, atol=2e-5)
        for name, error in differences(together, folder, index).items():
            assert error <= 2e-5, (index, name)


def test_bfloat16_stores_the_ties_in_order(teacher, tmp_path):
    store = precompute(config_for(teacher, tmp_path, dtype="bfloat16"))
    batch = store.read(range(len(store)))
    equal = batch.topk_logits[:, 1:] == batch.topk_logits[:, :-1]
    assert equal.any()  # rounding to bfloat16 made ties
    assert (batch.topk_logits[:, 1:] <= batch.topk_logits[:, :-1]).all()
    assert (np.diff(batch.topk_ids.astype(np.int64), axis=1)[equal] > 0).all()
    np.testing.assert_array_equal(batch.argmax, batch.topk_ids[:, 0])


def test_skipped_examples_are_counted_and_have_no_rows(teacher, tmp_path):
    records = [
        {"prompt": "ab", "response": "cd"},
        {"prompt": "ab", "response": ""},
        {"prompt": "ab", "response": "c" * 30},
        {"prompt": "a" * 30, "response": "c"},
    ]
    config = config_for(teacher, tmp_path, records, max_length=20, on_long="truncate")
    store = precompute(config)
    assert store.seal["statuses"] == {"ok": 1, "truncated": 1, "too_long": 1, "empty": 1}
    assert store.row_counts().tolist() == [3, 0, 18, 0]
    assert store.token_counts().tolist() == [5, 0, 20, 0]


def test_a_teacher_with_nan_leaves_rows_without_teacher(teacher, tmp_path, capsys):
    broken = save_tiny(tmp_path / "broken", tie=False)
    weights = load_file(broken / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(broken)
    weights["model.embed_tokens.weight"][tokenizer.convert_tokens_to_ids("z")] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    records = [
        {"prompt": "a", "response": "bb"},
        {"prompt": "a", "response": "bzb"},
        {"prompt": "z", "response": "bb"},
    ]
    with pytest.raises(TeacherError, match=r"NaN or Inf in 2 of 3 examples.*--max-non-finite 1"):
        precompute(config_for(broken, tmp_path, records))
    store = precompute(config_for(broken, tmp_path, records, max_non_finite=1.0))
    kept = store.read([0, 1, 2]).num_kept > 0
    assert store.seal["statuses"] == {"ok": 1, "non_finite": 2}
    assert "NaN or Inf in 2 examples" in capsys.readouterr().out
    # Attention spreads NaN over its whole example (0 x NaN), but never to the others of the batch.
    assert kept.tolist() == [*[True] * 3, *[False] * 4, *[False] * 3]


def test_the_default_encoding_keeps_ids_and_probabilities(teacher, tmp_path):
    """Rounding touches probabilities only; how far is the encoding's own test."""
    stores = {}
    for encoding in ("exact", None):
        (tmp_path / str(encoding)).mkdir()
        config = config_for(
            teacher, tmp_path / str(encoding), encoding=encoding, deterministic=True
        )
        stores[encoding] = precompute(config)
    assert (stores[None].spec.encoding, stores[None].spec.format_version) == ("fitted2", 2)
    exact, fitted = (store.read(range(len(RECORDS))) for store in stores.values())
    for name in ("num_kept", "argmax", "label_rank"):
        np.testing.assert_array_equal(getattr(fitted, name), getattr(exact, name))
    rows = []
    for batch in (exact, fitted):
        key = np.argsort(batch.topk_ids, axis=1)
        p = np.exp(batch.topk_logits - batch.logsumexp[:, None])
        rows.append([np.take_along_axis(values, key, axis=1) for values in (batch.topk_ids, p)])
    np.testing.assert_array_equal(rows[0][0], rows[1][0])
    np.testing.assert_allclose(rows[0][1], rows[1][1], atol=2e-3)
