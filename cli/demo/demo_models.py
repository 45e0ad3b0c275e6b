"""Models of the demo: the bundled teacher, a character tokenizer, and small random students."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

TEACHER = Path(__file__).resolve().parent / "demo_teacher"

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
CHARACTERS = [chr(code) for code in range(0x20, 0x7F)]


def character_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer with one token per printable ASCII character; it prepends BOS."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, bos, eos, unk = SPECIAL
    vocabulary = {token: index for index, token in enumerate(SPECIAL + CHARACTERS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(hidden_size: int, num_layers: int, num_heads: int = 4) -> "LlamaConfig":
    """Config of the demo's models: a Llama over the character vocabulary with tied embeddings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 16 * 16,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def write_student(path: Path, seed: int, hidden_size: int, num_layers: int) -> None:
    """Write a randomly initialised student and its tokenizer; equal seeds give equal weights."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = LlamaForCausalLM(tiny_llama(hidden_size, num_layers))
    student.save_pretrained(path)
    character_tokenizer().save_pretrained(path)
