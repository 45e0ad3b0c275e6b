"""Serve a cascade that `caskd eval --operating-point` wrote.

    caskd eval --small small.parquet --large large.parquet --out report \
        --operating-point "deferral_rate<=0.3"
    python examples/serve_cascade.py report/cascade.json SMALL_MODEL < prompts.txt

The large model here is a stand-in function: replace it by a call to your server, or set `large` to
the folder of a model.
"""

import sys
from collections.abc import Sequence

from caskd.eval import Cascade


def ask_large(prompts: Sequence[object]) -> list[str]:
    """One text for each prompt."""
    return [f"(the large model answers {prompt!r})" for prompt in prompts]


def main(cascade_json: str, small_model: str) -> None:
    """Answer the prompts on standard input, one per line."""
    cascade = Cascade.load(cascade_json, small=small_model, large=ask_large)
    expected = cascade.expected
    print(f"rule {cascade.rule}, threshold {cascade.threshold:.4g}: expected quality "
          f"{expected['quality']['mean']:.3f} at deferral rate "
          f"{expected['deferral_rate']['mean']:.3f}")  # fmt: skip
    prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    for prompt, answer in zip(prompts, cascade.answer(prompts), strict=True):
        print(
            f"{answer.answered_by:5}  {answer.deferral_score:8.4f}  {prompt!r} -> {answer.text!r}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
