"""The loss inside the student equals the loss on the model's own logits, for any head form."""

from typing import Any

import pytest
import torch
from helpers import architectures
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
)

from caskd.store.errors import UsageError
from caskd.train.data import MicroBatch
from caskd.train.loss import TeacherRows
from caskd.train.model import SUM_NAMES, LossOptions, StudentWithLoss, student_groups
from caskd.train.model.student import check_width
from caskd.train.objectives import OBJECTIVES

SMALL: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "gpt2": GPT2Config(
        vocab_size=41,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "phi (bias)": PhiConfig(**SMALL),
    "gemma2 (soft cap)": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=1.5),
    "cohere (scale)": CohereConfig(**SMALL, logit_scale=0.3),
    "granite (divisor)": GraniteConfig(**SMALL, logits_scaling=3.0),
}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_that_of_the_models_own_logits(name: str) -> None:
    model = model_of(name)
    tokens = torch.randint(3, 41, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    index, labels = torch.tensor([2, 3, 7, 11]), torch.tensor([5, 6, 7, 8])
    argmax = torch.tensor([5, 0, 0, 8])
    batch = MicroBatch(tokens, mask, index, labels, TeacherRows(argmax=argmax))
    loss, sums = StudentWithLoss(model, LossOptions(OBJECTIVES["xent"], "bucket"))(batch)
    logits = model(tokens, attention_mask=mask).logits.flatten(0, 1)[index]
    expected = functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    by_name = dict(zip(SUM_NAMES, sums.tolist(), strict=True))
    assert by_name["num_rows"] == 4
    assert by_name["teacher_correct"] == 2


def test_a_narrow_embedding_is_refused_and_a_wide_one_is_not() -> None:
    model = model_of("llama")
    check_width("it", model, 41)
    check_width("it", model, 30)
    with pytest.raises(UsageError, match="its embedding has 41 rows"):
        check_width("it", model, 42)


def test_ranks_that_gather_weights_need_a_student_whose_batches_stay_whole(capsys):
    model = architectures.build("phi3-longrope")
    assert student_groups("s", model, architectures.ORIGINAL, gathers=True).groups([5, 9]) == [
        [0, 1]
    ]
    long = architectures.ORIGINAL + 1
    assert student_groups("s", model, long).groups([long, 5]) == [[0], [1]]
    with pytest.raises(UsageError, match=r"--student s .*Phi3.* --zero-stage 3 .*--zero-stage 2"):
        student_groups("s", model, long, gathers=True)
    rwkv = architectures.build("bert-encoder")
    student_groups("s", rwkv, 8, quiet=True)
    assert not capsys.readouterr().err
