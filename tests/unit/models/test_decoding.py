"""Greedy decoding of a batch against one forward pass for each token, and a model's identity."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.tiny import save_tiny, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from caskd.models import config_digest, open_model, weights_digest
from caskd.models.decoding import check_stop_texts, decode_batch, hidden_index, load_for_decoding
from caskd.store.errors import UsageError

PROMPTS = [[5, 6, 7, 8, 9], [40], [11, 12, 13]]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "small", seed=8, tie=False)


@pytest.fixture(scope="module")
def loaded(folder):
    return load_for_decoding(str(folder), "--model", device="cpu")


@torch.inference_mode()
def by_hand(loaded, prompt, num_tokens=NEW_TOKENS):
    """Tokens and log-probabilities, one whole forward for each."""
    ids, steps = list(prompt), []
    for _ in range(num_tokens):
        logprobs = loaded.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        ids.append(int(logprobs.argmax()))
        steps.append(logprobs)
        if ids[-1] in loaded.stop_ids:
            break
    return ids[len(prompt) :], torch.stack(steps)


def test_a_batch_gives_what_each_prompt_gives_alone(loaded):
    answers = decode_batch(loaded, PROMPTS, NEW_TOKENS, options=[[5, 9], [], [20]])
    for prompt, answer, options in zip(PROMPTS, answers, ([5, 9], None, [20]), strict=True):
        ids, steps = by_hand(loaded, prompt)
        best = steps.topk(2, dim=-1).values
        assert answer.token_ids == ids
        assert answer.text == loaded.tokenizer.decode(ids, skip_special_tokens=True)
        assert answer.token_logprobs == pytest.approx(best[:, 0].tolist(), abs=1e-4)
        assert answer.token_margins == pytest.approx((best[:, 0] - best[:, 1]).tolist(), abs=1e-4)
        entropies = torch.special.entr(steps.exp()).sum(-1).tolist()
        assert answer.token_entropies == pytest.approx(entropies, abs=1e-4)
        expected = None if options is None else pytest.approx(steps[0, options].tolist(), abs=1e-4)
        assert answer.option_logprobs == expected
        assert answer.hidden is None


def test_a_model_that_cannot_generate_is_refused(folder, monkeypatch):
    loaded = load_for_decoding(str(folder), "--model", device="cpu")

    def broken(**_):
        raise AttributeError("no attribute 'num_hidden_layers'")

    monkeypatch.setattr(loaded.model, "generate", broken)
    with pytest.raises(UsageError, match=r"LlamaForCausalLM: generate\(\).*num_hidden_layers"):
        decode_batch(loaded, [[5, 6], [7]], 2)


def test_an_answer_ends_with_its_first_stop_id(folder):
    opened = load_for_decoding(str(folder), "--model", device="cpu")
    ids, _ = by_hand(opened, PROMPTS[0])
    loaded = replace(opened, stop_ids=(ids[3],))
    loaded.model.generation_config.eos_token_id = [ids[3]]
    first = ids.index(ids[3])
    (answer,) = decode_batch(loaded, PROMPTS[:1], NEW_TOKENS)
    assert answer.token_ids == ids[: first + 1]
    assert len(answer.token_logprobs) == len(answer.token_entropies) == first + 1


def test_a_stop_text_that_is_a_special_token_stops(folder):
    loaded = load_for_decoding(str(folder), "--model", device="cpu")
    free = decode_batch(loaded, PROMPTS, NEW_TOKENS)
    first = free[0].token_ids[2]
    text = loaded.tokenizer.convert_ids_to_tokens(first)
    loaded.tokenizer.add_special_tokens({"additional_special_tokens": [text]})
    assert text not in loaded.tokenizer.decode([first], skip_special_tokens=True)
    cut = decode_batch(loaded, PROMPTS, NEW_TOKENS, stop=[[text], [], []])
    end = free[0].token_ids.index(first) + 1
    assert cut[0].token_ids == free[0].token_ids[:end]
    assert text not in cut[0].text
    assert [answer.token_ids for answer in cut[1:]] == [answer.token_ids for answer in free[1:]]


def test_a_stop_text_with_a_special_token_inside_is_refused(loaded):
    token = loaded.tokenizer.eos_token
    check_stop_texts(loaded.tokenizer, [token, "\n", "END"])
    with pytest.raises(UsageError, match="holds the special token"):
        check_stop_texts(loaded.tokenizer, [f"{token}\n"])


def test_an_answer_ends_with_its_own_stop_text(loaded):
    free = decode_batch(loaded, PROMPTS, NEW_TOKENS)
    stop = free[0].text[3:5]
    assert len(stop) == 2
    cut = decode_batch(loaded, PROMPTS, NEW_TOKENS, stop=[[stop, "never seen"], [], []])
    assert cut[0].text == free[0].text[: free[0].text.index(stop)]
    assert len(cut[0].token_ids) == free[0].text.index(stop) + 2  # one token a character
    assert cut[1:] == free[1:]


@torch.inference_mode()
@pytest.mark.parametrize("layer", [0, 1, 2, -1, -3])
def test_hidden_states_are_those_of_the_prompts_last_token(loaded, layer):
    answers = decode_batch(loaded, PROMPTS, 2, hidden_layer=layer)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        states = loaded.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        assert answer.hidden == pytest.approx(states[layer][0, -1].tolist(), abs=1e-4)


@pytest.mark.parametrize("layer", [0, -1])
def test_hooks_end_with_the_decoding(folder, layer):
    loaded = load_for_decoding(str(folder), "--model", device="cpu")
    decode_batch(loaded, PROMPTS, 2, hidden_layer=layer)
    for module in loaded.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(("layer", "index"), [(0, 0), (2, 2), (-1, 2), (-3, 0)])
def test_layers_are_counted_from_either_end(loaded, layer, index):
    assert hidden_index(loaded.model, layer) == index


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_model_lacks_is_refused(loaded, layer):
    with pytest.raises(UsageError, match=f"--hidden {layer}: .*2 layers.* -3 to 2"):
        decode_batch(loaded, PROMPTS, 2, hidden_layer=layer)


def test_sampling_settings_of_a_checkpoint_are_ignored(folder, loaded, tmp_path):
    other = save_tiny(tmp_path / "sampling", seed=8, tie=False)
    settings = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0, "min_length": 9}
    GenerationConfig(**settings, eos_token_id=[7]).save_pretrained(other)
    sampling = load_for_decoding(str(other), "--model", device="cpu")
    assert sampling.stop_ids == (7, 2)  # the generation config's, then the tokenizer's
    assert loaded.stop_ids == (2,)
    for prompt, answer in zip(PROMPTS, decode_batch(sampling, PROMPTS, NEW_TOKENS), strict=True):
        assert answer.token_ids == by_hand(sampling, prompt)[0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_an_adapter_alone_has_the_config_of_its_base(folder, tmp_path):
    base = open_model(folder, "--model")
    config = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(folder))
    get_peft_model(base, config).save_pretrained(tmp_path / "tuned")
    tiny_tokenizer().save_pretrained(tmp_path / "tuned")
    identity = load_for_decoding(str(tmp_path / "tuned"), "--model", device="cpu").identity
    assert identity["name"] == "tuned"
    assert identity["config_digest"] == config_digest(folder)
    assert identity["weights_digest"] == weights_digest(tmp_path / "tuned")


def test_the_identity_of_a_folder(folder, loaded, tmp_path):
    identity = loaded.identity
    model = loaded.model
    embeddings = 2 * model.lm_head.weight.numel()
    assert identity == {
        "name": "small",
        "revision": None,
        "weights_digest": weights_digest(folder),
        "config_digest": config_digest(folder),
        "tokenizer_digest": identity["tokenizer_digest"],
        "template_digest": None,
        "num_parameters": model.num_parameters(),
        "num_non_embedding_parameters": model.num_parameters() - embeddings,
        "dtype": "float32",
    }
    assert len(identity["config_digest"]) == 64
    assert str(folder.parent) not in json.dumps(identity)
    tied = load_for_decoding(str(save_tiny(tmp_path / "tied")), "--model", device="cpu").identity
    half = load_for_decoding(str(folder), "--model", dtype="bfloat16", device="cpu")
    assert tied["num_parameters"] - tied["num_non_embedding_parameters"] == embeddings // 2
    assert (half.identity["dtype"], half.model.dtype) == ("bfloat16", torch.bfloat16)
    assert half.identity["config_digest"] == identity["config_digest"]
    assert loaded.max_positions == 256


def test_end_tokens_of_an_adapter_folder_count(folder, tmp_path):
    adapted = get_peft_model(
        open_model(str(folder), "--model"), LoraConfig(target_modules=["q_proj"])
    )
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "tuned")
    tiny_tokenizer().save_pretrained(tmp_path / "tuned")
    GenerationConfig(eos_token_id=[2, 3]).save_pretrained(tmp_path / "tuned")
    assert load_for_decoding(str(tmp_path / "tuned"), "--model", device="cpu").stop_ids == (2, 3)
