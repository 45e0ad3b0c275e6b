"""Tokenizers of every family and chat templates of every style, built in code."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "It is so. It is what it is, and that is that.",
    "What is it? It says 42, or 1,234.5, says the user to the assistant.",
    "def f(x):\n    return x + 1\n\n# It is done\n\n\nThe end",
    "user assistant system model final analysis tool think [INST] [/INST] It's",
    "é ü 中文 It  is   spaced",
] * 4
SPECIAL = [
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>",
    "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|start|>",
    "<|message|>", "<|channel|>", "<|return|>", "<|endoftext|>", "<|begin_of_text|>", "<|User|>",
    "<|Assistant|>",
]  # fmt: skip
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(pattern: str | None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    level = pre.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre.Split(Regex(pattern), "isolated")]
    backend.pre_tokenizer = pre.Sequence([*split, level])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet)
    )
    return backend


def _sentencepiece(prepend: bool, scheme: str | None, unigram: bool = False) -> Tokenizer:
    """A SentencePiece-like tokenizer with byte fallback."""
    alphabet = sorted({*"".join(CORPUS), "\u2581"} - {" ", "中", "文", "\n"})
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre.Metaspace(prepend_scheme="first")
    letters.train_from_iterator(
        [text.replace("\n", " ") for text in CORPUS],
        trainers.BpeTrainer(vocab_size=220, initial_alphabet=alphabet),
    )
    pieces = sorted(letters.get_vocab(), key=letters.get_vocab().get)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    if unigram:
        scores = [("<unk>", -30.0), *((piece, -20.0) for piece in fallback)]
        scores += [(piece, -9.0 + 0.5 * len(piece)) for piece in pieces]
        backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    else:
        import json

        merges = json.loads(letters.to_str())["model"]["merges"]
        vocab = {piece: n for n, piece in enumerate(["<unk>", *fallback, *pieces])}
        backend = Tokenizer(
            models.BPE(
                vocab, [tuple(m) for m in merges], unk_token="<unk>", byte_fallback=True,
                fuse_unk=True,
            )
        )  # fmt: skip
    if scheme is not None:
        backend.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme, split=unigram)
    else:
        steps = [normalizers.Prepend("\u2581")] if prepend else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def wordpiece() -> PreTrainedTokenizerFast:
    """A tokenizer that drops white space."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<unk>"])
    )
    return _wrapped(backend)


def _wrapped(backend: Tokenizer, rstrip: bool = False) -> PreTrainedTokenizerFast:
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=rstrip) for t in SPECIAL]
    )
    backend.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    "byte-level": lambda: _wrapped(_byte_level(None)),
    "gpt4-like": lambda: _wrapped(_byte_level(GPT4)),
    "tekken-like": lambda: _wrapped(_byte_level(TEKKEN)),
    "prepend": lambda: _wrapped(_sentencepiece(True, None)),
    "phi3-like": lambda: _wrapped(_sentencepiece(True, None), rstrip=True),
    "replace-only": lambda: _wrapped(_sentencepiece(False, None)),
    "metaspace-first": lambda: _wrapped(_sentencepiece(False, "first")),
    "metaspace-always": lambda: _wrapped(_sentencepiece(False, "always")),
    "metaspace-never": lambda: _wrapped(_sentencepiece(False, "never")),
    "unigram": lambda: _wrapped(_sentencepiece(False, "always", unigram=True)),
}

_GENERATION = "{% if add_generation_prompt %}"
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        + _GENERATION
        + "<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
        "\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
        + _GENERATION
        + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "<s>{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>"
        "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>' }}\n{% endfor %}"
        + _GENERATION
        + "{{ '<|assistant|>' }}\n{% endif %}"
    ),
    "gemma": (
        "<s>{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}" + _GENERATION + "<start_of_turn>model\n{% endif %}"
    ),
    "phi3": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        + _GENERATION
        + "{{ '<|assistant|>\n' }}{% else %}<|endoftext|>{% endif %}"
    ),
    "qwen3": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last and '</think>' not in m.content %}"
        "<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content if loop.last else m.content.split('</think>')[-1].lstrip('\n') }}"
        "<|im_end|>\n{% endfor %}" + _GENERATION + "<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
        "{% endif %}{% endif %}"
    ),
    "r1": (
        "<s>{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}"
        "<|endoftext|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
        + _GENERATION
        + "<|Assistant|><think>\n{% endif %}"
    ),
    "harmony": (
        "{% for m in messages %}<|start|>{{ m.role }}"
        "{% if m.role == 'assistant' %}<|channel|>final<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}"
        "{% else %}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        + _GENERATION
        + "<|start|>assistant{% endif %}"
    ),
}
