"""Planning: every mistake of a user is one line and leaves nothing behind; a plan is reused."""

import json
import shutil
import subprocess
import sys

import pytest
from helpers.tiny import ragged_records, save_tiny, write_jsonl
from safetensors.torch import load_file, save_file

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import planner
from caskd.precompute.planning.planner import plan
from caskd.store.errors import IdentityError, UsageError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "big")


@pytest.fixture
def config_of(tmp_path, teacher):
    data = write_jsonl(tmp_path / "data.jsonl", ragged_records(12))

    def build(**changes):
        base = {
            "teacher": str(teacher),
            "data": (str(data),),
            "store": str(tmp_path / "store"),
            "top_k": 8,
            "shard_rows": 64,
        }
        return PrecomputeConfig(**{**base, **changes})

    return build


def test_identity_says_what_the_numbers_depend_on_and_no_path(config_of, tmp_path, teacher):
    spec = plan(config_of())
    assert spec.identity["teacher"]["name"] == "big"
    assert spec.identity["text"] == {
        "kind": "prompt", "eos": True, "max_length": 256, "on_long": "error",
        "on_duplicate": "keep", "template_digest": None, "rule": 2,
    }  # fmt: skip
    assert spec.identity["capture"]["load_dtype"] == "float32"
    assert spec.num_examples == spec.identity["corpus"]["num_records"] == 12
    assert spec.num_rows == sum(len(r["response"]) + 1 for r in ragged_records(12))
    for file in (tmp_path / "store").rglob("*.json"):
        for folder in (tmp_path, teacher.parent):
            assert str(folder) not in file.read_text()


def test_dry_run_prints_the_numbers_and_writes_nothing(config_of, tmp_path, capsys):
    dry = plan(config_of(dry_run=True))
    assert f"{dry.num_rows:,} in {dry.num_shards:,} shards of 64" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()
    assert plan(config_of()) == dry


def test_an_equal_plan_is_reused_without_tokenising(config_of, tmp_path, monkeypatch):
    spec = plan(config_of())
    again = write_jsonl(tmp_path / "same.jsonl", ragged_records(12))
    (tmp_path / "data.jsonl").unlink()
    tokenised = []
    monkeypatch.setattr(planner, "tokenize_corpus", lambda *args: tokenised.append(args))
    assert plan(config_of(data=(str(again),))) == spec
    assert tokenised == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"top_k": 9}, "capture.top_k is 8 there, but 9 here"),
        ({"eos": False}, "text.eos is True there, but False here"),
        ({"dtype": "bfloat16"}, "capture.load_dtype"),
        ({"on_long": "skip"}, "text.on_long"),
        ({"task_column": "other"}, "corpus.digest"),
    ],
)
def test_another_identity_is_refused(config_of, changes, field):
    plan(config_of())
    with pytest.raises(IdentityError, match=field) as caught:
        plan(config_of(**changes))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_other_weights_are_another_teacher(config_of, teacher, tmp_path):
    plan(config_of())
    twin = shutil.copytree(teacher, tmp_path / "big")
    assert plan(config_of(teacher=str(twin)))  # another folder, the same teacher
    weights = load_file(twin / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, twin / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IdentityError, match=r"teacher\.weights_digest"):
        plan(config_of(teacher=str(twin)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": ("gone.jsonl",)}, "--data gone.jsonl"),
        ({"data": ()}, "--data"),
        ({"response_column": "target"}, "'target'.*--response-column"),
        ({"top_k": 51}, "--top-k 50"),
        ({"top_k": 0}, "--top-k 0: expected 1 to"),
        ({"top_k": 70_000}, "--top-k 70000"),
        ({"min_mass": 0.0}, "--min-mass 0.0"),
        ({"min_mass": 1.5}, "--min-mass 1.5"),
        ({"shard_rows": 0}, "--shard-rows .*0"),
        ({"token_budget": 0}, "--token-budget 0"),
        ({"max_length": 1}, "--max-length 1"),
        ({"max_length": 257}, "the teacher takes 256"),
        ({"max_length": 9}, "--on-long truncate"),
        ({"shard_rows": 5}, "--shard-rows"),
        ({"store": "s3://bucket/store"}, "local directory"),
        ({"teacher": "./gone"}, "--teacher ./gone: no such folder"),
        ({"teacher": "nobody/nothing"}, "--teacher nobody/nothing: no such folder, and the hub"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(config_of, tmp_path, changes, said):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=said) as caught:
        plan(config_of(**changes))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_teacher_that_is_no_whole_checkpoint(config_of, teacher, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"no \.safetensors"):
        plan(config_of(teacher=str(empty)))
    shutil.copy(teacher / "model.safetensors", empty)
    with pytest.raises(UsageError, match=r"--teacher .*empty: cannot open the config") as caught:
        plan(config_of(teacher=str(empty)))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_code_of_its_own_is_refused(config_of, teacher, tmp_path):
    foreign = shutil.copytree(teacher, tmp_path / "foreign")
    described = json.loads((foreign / "config.json").read_text())
    described |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (foreign / "config.json").write_text(json.dumps(described))
    (foreign / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(
        UsageError, match=r"--teacher .*foreign: cannot open .*needs no remote code"
    ):
        plan(config_of(teacher=str(foreign)))
    assert not (tmp_path / "ran").exists()


def test_no_eos_says_nothing_about_messages(config_of, tmp_path):
    data = write_jsonl(tmp_path / "chat.jsonl", [{"messages": []}])
    with pytest.raises(UsageError, match="--no-eos"):
        plan(config_of(data=(str(data),), eos=False))


def test_tokens_that_the_teacher_has_no_column_for(config_of, tmp_path):
    narrow = save_tiny(tmp_path / "narrow", vocab_size=20)
    records = [{"prompt": "ab", "response": "cd"}, {"prompt": "ab", "response": "zz"}]
    data = write_jsonl(tmp_path / "two.jsonl", records)
    with pytest.raises(UsageError, match=r"1 of 2 examples is with a token.*record 1; .*skip"):
        plan(config_of(teacher=str(narrow), data=(str(data),)))
    spec = plan(config_of(teacher=str(narrow), data=(str(data),), on_out_of_vocabulary="skip"))
    assert (spec.num_examples, spec.num_rows) == (2, 3)


def test_a_config_costs_no_torch():
    code = (
        "import sys\nfrom caskd.precompute import PrecomputeConfig\n"
        "PrecomputeConfig(teacher='t', data=('d',), store='s')\n"
        "print(sorted({'torch', 'transformers', 'pyarrow', 'zarr'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
