"""Write a GGUF file as a folder of transformers with float32 safetensors.

    python benchmarks/gguf_teacher.py MODEL.gguf OUT

Needs the package gguf. The weights are unpacked to float32, tied ones stay tied, so the folder is
the quantised model and not the one that it was made from. It serves measurements of a store with a
large vocabulary, such as Gemma 3 270M (V = 262,144): check the model's own terms first, and do not
pass the folder on.
"""

import argparse
import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path, help="one file")
    parser.add_argument("out", type=Path, help="new folder")
    args = parser.parse_args()
    if args.out.exists():
        raise SystemExit(f"{args.out}: exists; expected a new folder; pass another one")
    folder, source = args.gguf.parent, {"gguf_file": args.gguf.name, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, dtype=torch.float32, **source
    )
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are unpacked
    model = type(loaded)(config)  # without the quantiser, which refuses to save
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(args.out)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **source)
    tokenizer.save_pretrained(args.out)
    print(f"{args.out}: V = {model.config.get_text_config().vocab_size:,}")


if __name__ == "__main__":
    main()
