"""Who may write into a planned store: one thing changed, and the capture is refused by its name.

Every change is made alone, to an otherwise equal capture; nothing is loaded before the refusal.
"""

import dataclasses
import json
import shutil

import pytest
from helpers.tiny import save_tiny, write_jsonl
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from caskd.precompute import precompute
from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning.planner import plan
from caskd.precompute.teacher import transformers_source
from caskd.store.errors import IdentityError

NUM_RECORDS = 10_000
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
PROMPTS = [
    {"prompt": f"say {n}", "response": f"it is {n}.", "task": f"t{n % 2}"}
    for n in range(NUM_RECORDS)
]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "be good"},
            {"role": "user", "content": f"say {n}"},
            {"role": "assistant", "content": f"it is {n}."},
        ]
    }
    for n in range(20)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A teacher with a chat template, two corpora, and a planned store of each."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny(folder / "big")
    set_template(folder / "big", TEMPLATE)
    for name, records in (("prompt", PROMPTS), ("chat", CHATS)):
        data = write_jsonl(folder / f"{name}.jsonl", records)
        plan(PrecomputeConfig(**base(folder / "big", data, folder / f"{name}-store")))
    return folder


def base(teacher, data, store):
    return {
        "teacher": str(teacher), "data": (str(data),), "store": str(store), "top_k": 8,
        "shard_rows": 4096, "device": "cpu", "max_length": 200, "tokenize_processes": 1,
    }  # fmt: skip


@pytest.fixture
def refused(home, tmp_path, monkeypatch):
    """Runs a changed capture; returns what it is refused with."""

    def load(*args, **options):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr("caskd.precompute.teacher.transformers_teacher.load_model", load)

    def run(kind="prompt", *, teacher=None, records=None, **changes):
        data = home / f"{kind}.jsonl"
        if records is not None:
            data = write_jsonl(tmp_path / "other.jsonl", records)
        config = base(teacher or home / "big", data, home / f"{kind}-store")
        with pytest.raises(IdentityError) as caught:
            precompute(PrecomputeConfig(**{**config, **changes}))
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


@pytest.fixture
def twin(home, tmp_path):
    """A copy of the teacher under the same name, to be changed."""
    return shutil.copytree(home / "big", tmp_path / "big")


def set_template(folder, template):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def test_the_unchanged_capture_is_taken(home, twin):
    for kind in ("prompt", "chat"):
        config = base(twin, home / f"{kind}.jsonl", home / f"{kind}-store")
        assert plan(PrecomputeConfig(**config)).num_rows > 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"eos": False}, "text.eos is True there, but False here"),
        ({"max_length": 199}, "text.max_length is 200 there, but 199 here"),
        ({"on_long": "skip"}, "text.on_long"),
        ({"on_long": "truncate"}, "text.on_long"),
        ({"on_duplicate": "skip"}, "text.on_duplicate"),
        ({"top_k": 7}, "capture.top_k is 8 there, but 7 here"),
        ({"min_mass": 0.99}, "capture.min_mass"),
        ({"dtype": "bfloat16"}, "capture.load_dtype"),
        ({"dtype": "float16"}, "capture.load_dtype"),
        ({"encoding": "exact"}, "encoding"),
        ({"task_column": "other"}, "corpus.digest"),
        ({"prompt_column": "response", "response_column": "prompt"}, "corpus.digest"),
    ],
)
def test_another_flag(refused, changes, field):
    assert field in refused(**changes)


def one_character(records):
    records[7777] = {**records[7777], "response": "it is 7778."}


def one_space(records):
    records[5000] = {**records[5000], "response": records[5000]["response"] + " "}


def one_prompt(records):
    records[0] = {**records[0], "prompt": "Say 0"}


def one_task(records):
    records[9999] = {**records[9999], "task": "t0"}


def two_swapped(records):
    records[4], records[5] = records[5], records[4]


def one_added(records):
    records.append(records[0])


def one_removed(records):
    records.pop()


@pytest.mark.parametrize(
    "change", [one_character, one_space, one_prompt, one_task, two_swapped, one_added, one_removed]
)
def test_another_corpus_of_ten_thousand_records(refused, change):
    records = list(PROMPTS)
    change(records)
    assert "corpus.digest" in refused(records=records)


def test_another_shape_of_corpus(refused):
    said = refused(records=[{"text": record["response"]} for record in PROMPTS])
    assert "text.kind is 'prompt' there, but 'text' here" in said
    assert "(and 1 more: corpus.digest)" in said


def test_the_difference_that_a_person_sees_leads(refused, twin):
    said = refused(records=PROMPTS[:100])
    assert "corpus.num_records is 10000 there, but 100 here (--data)" in said
    assert said.index("num_records") < said.index("corpus.digest")
    one_weight(twin)
    said = refused(teacher=twin.rename(twin.parent / "bigger"), records=PROMPTS[:100], top_k=7)
    assert "teacher.name is 'big' there, but 'bigger' here (--teacher)" in said
    order = ["teacher.name", "num_records", "top_k", "weights_digest", "corpus.digest"]
    assert [said.index(field) for field in order] == sorted(said.index(field) for field in order)


def another_name(folder):
    return folder.rename(folder.parent / "bigger")


def one_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def in_json(name, **values):
    """A change to a JSON file of a checkpoint."""

    def change(folder):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def in_tokenizer(change):
    """A change to the tokenizer itself."""

    def apply(folder):
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return apply


def swap_two_ids(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def rename_a_token(content):
    content["model"]["vocab"]["A"] = content["model"]["vocab"].pop("a")


def lower_case(content):
    content["normalizer"] = {"type": "Lowercase"}


def split_at_spaces(content):
    content["pre_tokenizer"]["pattern"] = {"Regex": ". ?|\n"}


def starts_with_bos(folder):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))


def one_more_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (another_name, "teacher.name"),
        (one_weight, "teacher.weights_digest"),
        (in_json("config.json", rms_norm_eps=1e-5), "teacher.config_digest"),
        (in_json("config.json", final_logit_softcapping=30.0), "teacher.config_digest"),
        (in_json("config.json", rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
         "teacher.config_digest"),
        (in_tokenizer(swap_two_ids), "vocabulary.digest"),
        (in_tokenizer(rename_a_token), "vocabulary.digest"),
        (in_tokenizer(lower_case), "vocabulary.tokenizer_digest"),
        (in_tokenizer(split_at_spaces), "vocabulary.tokenizer_digest"),
        (starts_with_bos, "vocabulary.tokenizer_digest"),
        (in_json("tokenizer_config.json", eos_token="<pad>"), "vocabulary.eos_id"),
        (one_more_token, "vocabulary."),
    ],
)  # fmt: skip
def test_another_teacher(refused, twin, change, field):
    teacher = change(twin) or twin
    assert field in refused(teacher=teacher)


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE.replace("':' +", "': ' +"),  # one more space
        TEMPLATE + " ",
        TEMPLATE.replace("'assistant:'", "'assistant: '"),
        TEMPLATE.replace("'</s>'", "'</s>\n'"),
    ],
)
def test_another_chat_template(refused, twin, template):
    set_template(twin, template)
    said = refused("chat", teacher=twin)
    assert "text.template is" in said
    assert "(and 2 more: vocabulary.tokenizer_digest, text.template_digest)" in said


@pytest.mark.parametrize("role", [0, 1, 2])
def test_one_character_of_a_conversation(refused, role):
    chats = json.loads(json.dumps(CHATS))
    chats[13]["messages"][role]["content"] += "."
    assert "corpus.digest" in refused("chat", records=chats)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"revision": "0" * 40}, "teacher.revision"),
        ({"attention": "eager"}, "capture.attention"),
    ],
)
def test_what_a_hub_or_a_library_decides(refused, monkeypatch, changes, field):
    """The revision of a hub's snapshot, and the attention that transformers chooses."""
    found = transformers_source.find_checkpoint
    monkeypatch.setattr(
        transformers_source,
        "find_checkpoint",
        lambda *args, **options: dataclasses.replace(found(*args, **options), **changes),
    )
    assert field in refused()
