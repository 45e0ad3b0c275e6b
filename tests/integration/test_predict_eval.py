"""From models to a report: decoding is greedy to the token, whatever the batch."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.tiny import ragged_records, save_tiny, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.cli.main import main
from caskd.eval import PredictConfig, predict
from caskd.eval.answers import Ragged, read_predictions
from caskd.eval.rules import Pair
from caskd.store.corpus import Columns, prompt_ids
from caskd.store.errors import UsageError

NEW_TOKENS = 24
RECORDS = ragged_records(24)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of which some answers stop and others do not, with settings that are not greedy."""
    folder = save_tiny(tmp_path_factory.mktemp("models") / "small", seed=4, tie=False)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"repetition_penalty": 1.8, "do_sample": True, "temperature": 3.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "data.jsonl", RECORDS)


def run(model, data, out, **options):
    options = {"max_new_tokens": NEW_TOKENS, "batch_size": 8, "device": "cpu", **options}
    return predict(PredictConfig(model=str(model), data=(str(data),), out=str(out), **options))


def greedy(model, prompt, stop):
    """Greedy decoding in its plainest form: no cache, no batch, no generate()."""
    ids = list(prompt)
    while len(ids) < len(prompt) + NEW_TOKENS:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == stop:
            break
    return ids[len(prompt) :]


@torch.inference_mode()
def test_answers_are_greedy_and_scored_by_a_teacher_forced_forward(small, data, tmp_path):
    answers = run(small, data, tmp_path / "p.parquet")
    model = AutoModelForCausalLM.from_pretrained(small).eval()
    tokenizer = AutoTokenizer.from_pretrained(small)
    table = answers.columns.to_pylist()
    logprobs = answers.columns.column("token_logprobs").to_pylist()
    for i, record in enumerate(RECORDS):
        prompt = prompt_ids(tokenizer, record, Columns())
        expected = greedy(model, prompt, tokenizer.eos_token_id)
        assert table[i]["token_ids"] == expected
        assert table[i]["text"] == tokenizer.decode(expected, skip_special_tokens=True)
        logits = model(torch.tensor([prompt + expected])).logits[0].float()
        forced = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        chosen = forced[range(len(expected)), expected].numpy()
        np.testing.assert_allclose(logprobs[i], chosen, atol=2e-5)
        assert table[i]["prompt_tokens"] == len(prompt)
        assert table[i]["output_tokens"] == len(expected)
    stopped = [row["token_ids"][-1] == tokenizer.eos_token_id for row in table]
    assert 0 < sum(stopped) < len(stopped)


def test_batches_and_padding_change_nothing(small, data, tmp_path):
    alone = run(small, data, tmp_path / "1.parquet", batch_size=1)
    together = run(small, data, tmp_path / "24.parquet", batch_size=24)
    for name in ("example_id", "text", "task", "reference", "prompt_digest", "question_digest"):
        assert alone.strings(name) == together.strings(name)
    assert alone.columns["token_ids"] == together.columns["token_ids"]
    for name in ("token_logprobs", "token_margins", "token_entropies"):
        one, other = (Ragged.of_column(each.columns[name]) for each in (alone, together))
        np.testing.assert_allclose(one.values, other.values, atol=5e-5)
    assert alone.metadata["data_digest"] == together.metadata["data_digest"]


def test_the_file_says_what_was_done_and_where_nothing_lies(small, data, tmp_path):
    run(small, data, tmp_path / "p.parquet", limit=5)
    read = read_predictions(str(tmp_path / "p.parquet"))
    assert read.strings("example_id") == ["0", "1", "2", "3", "4"]
    assert read.strings("reference") == [record["response"] for record in RECORDS[:5]]
    assert read.strings("task") == [record["task"] for record in RECORDS[:5]]
    model = AutoModelForCausalLM.from_pretrained(small)
    identity = read.metadata["model"]
    embeddings = model.lm_head.weight.numel() + model.model.embed_tokens.weight.numel()
    assert identity["name"] == "small"
    assert identity["num_parameters"] == model.num_parameters()
    assert identity["num_non_embedding_parameters"] == model.num_parameters() - embeddings
    assert read.metadata["decoding"]["max_new_tokens"] == NEW_TOKENS
    assert str(tmp_path.parent).encode() not in (tmp_path / "p.parquet").read_bytes()
    assert [path.name for path in tmp_path.glob("*p.parquet*")] == ["p.parquet"]
    assert pq.read_schema(tmp_path / "p.parquet").field("token_logprobs").type.value_type == "float"


def test_quality_and_ids_come_from_the_data(small, data, tmp_path):
    answers = run(small, data, tmp_path / "first.parquet", limit=6).strings("text")
    records = [
        {
            "id": f"q{i}",
            "prompt": RECORDS[i]["prompt"],
            "response": f" {answer}  " if i % 2 else "-",
        }
        for i, answer in enumerate(answers)
    ]
    again = run(small, write_jsonl(tmp_path / "known.jsonl", records), tmp_path / "second.parquet")
    assert again.strings("example_id") == [f"q{i}" for i in range(6)]
    assert again.numbers("quality").tolist() == [0.0, 1.0] * 3
    assert again.strings("task") == [""] * 6


def test_a_chat_is_asked_up_to_its_last_answer(small, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(small)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    model = tmp_path / "chat"
    AutoModelForCausalLM.from_pretrained(small).save_pretrained(model)
    tokenizer.save_pretrained(model)
    said = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    turns = [{"role": role, "content": content} for role, content in said]
    chats = [turns, [*turns[:3], {"role": "assistant", "content": "x"}], turns[:2]]
    data = write_jsonl(tmp_path / "c.jsonl", [{"messages": chat} for chat in chats])
    answers = run(model, data, tmp_path / "c.parquet")
    assert answers.strings("reference") == ["four", "x", "two"]
    asked = [len("u:one\na:two\nu:three\na:")] * 2 + [len("u:one\na:")]
    assert answers.numbers("prompt_tokens").tolist() == asked
    for name in ("question_digest", "prompt_digest"):  # the expected answer is no part of either
        first, second, other = answers.strings(name)
        assert first == second != other


def test_another_tokenizer_may_be_the_large_model(small, data, tmp_path):
    large = save_tiny(tmp_path / "large", seed=9, tie=False)
    tokenizer = AutoTokenizer.from_pretrained(large)
    tokenizer.add_tokens(["ab", "the"])
    tokenizer.save_pretrained(large)
    model = AutoModelForCausalLM.from_pretrained(large)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(large)
    ours, theirs = (
        run(model, data, tmp_path / f"{model.name}.parquet") for model in (small, large)
    )
    digests = [one.metadata["model"]["tokenizer_digest"] for one in (ours, theirs)]
    assert digests[0] != digests[1]
    assert len(Pair(ours, theirs)) == len(RECORDS)


def test_the_commands_from_data_to_report(small, data, tmp_path, capsys):
    large = save_tiny(tmp_path / "large", seed=9, tie=False, layers=3)
    for model in (small, large):
        words = ["--model", str(model), "--data", str(data), "--max-new-tokens", "4"]
        assert main(["predict", *words, "--out", str(tmp_path / f"{model.name}.parquet")]) == 0
    files = [str(tmp_path / name) for name in ("small.parquet", "large.parquet")]
    out = tmp_path / "report"
    assert main(["eval", "--small", files[0], "--large", files[1], "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["smalls"][0]["all"]["num_examples"] == len(RECORDS)
    assert summary["large"]["name"] == "large"
    assert "index.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "no records"),
        ([{"question": "a", "answer": "b"}], {}, "--prompt-column"),
        ([{"text": "a"}], {}, "pass --prompt-column and --response-column"),
        ([{"prompt": "", "response": "b"}], {}, "record 0: .*empty prompt"),
        ([{"id": 3, "prompt": "a", "response": "b"}] * 2, {}, "records 0 and 1: .*id '3'"),
        ([{"prompt": "a" * 240, "response": "b"}], {}, "record 0: .*240 prompt tokens"),
        (RECORDS, {"batch_size": 0}, "--batch-size 0: expected 1 or more"),
        (RECORDS, {"limit": -1}, "--limit -1: expected 1 or more"),
        (
            RECORDS,
            {"worker": 2, "num_workers": 2},
            "--worker 2 with --num-workers 2: expected 0 to 1",
        ),
        (RECORDS, {"hidden": 3}, "--hidden 3: .*2 layers; expected -3 to 2"),
        (
            RECORDS,
            {"task_metric": ("rouge",)},
            "metric 'rouge': unknown; expected one of exact_match",
        ),
        (
            RECORDS,
            {"options_column": "choices"},
            "no column 'choices' in the data",
        ),
        ([{**RECORDS[0], "options": "AB"}], {}, "'options': holds str; expected a list of texts"),
        ([{**RECORDS[0], "options": ["a", "ab"]}], {}, "'a' and 'ab' start with the same token"),
        ([{**RECORDS[0], "options": ["a", "a"]}], {}, "'a' and 'a' start with the same token"),
        ([*RECORDS[:2], {"prompt": "a"}], {}, "record 2: .*no column 'response'"),
        ([{**RECORDS[0], "options": ["a", ""]}], {}, "record 0: an option is empty; expected text"),
        (RECORDS, {"device": "gpu"}, "--device gpu: expected auto, cpu, cuda or cuda:N"),
        (RECORDS, {"model": "no/where/there"}, "--model no/where/there: no such folder"),
    ],
)
def test_mistakes_of_users(small, tmp_path, records, options, message):
    data, out = write_jsonl(tmp_path / "d.jsonl", records), tmp_path / "o.parquet"
    with pytest.raises(UsageError, match=message) as caught:
        run(options.pop("model", small), data, out, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_missing_file_and_a_file_that_is_there(small, data, tmp_path, capsys):
    words = ["predict", "--model", str(small), "--out", str(tmp_path / "o.parquet"), "--data"]
    assert main([*words, str(tmp_path / "no.jsonl")]) == 2
    assert f"--data {tmp_path / 'no.jsonl'}: no such file" in capsys.readouterr().err
    (tmp_path / "o.parquet").write_text("mine")
    assert main([*words, str(data)]) == 2
    error = capsys.readouterr().err
    assert f"--out {tmp_path / 'o.parquet'}: exists and is not a predictions file" in error
    assert "remove it" in error
    assert (tmp_path / "o.parquet").read_text() == "mine"
