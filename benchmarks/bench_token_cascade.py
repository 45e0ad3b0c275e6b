"""Is a token cascade exact? Every rule and draft length against the rule's definition.

    python benchmarks/bench_token_cascade.py --prompts 200

Two tiny models with random weights. `token_cascade_equality.csv`: in float64, the answers of
`TokenCascade` against one forward pass of each model for every token, without caches and drafts.
`token_cascade_bfloat16.csv`: the same models in bfloat16, the share of tokens that one pass over
the finished answer would choose differently, and answers that depend on the draft length.
`token_cascade_law.csv`: the sampled form, total variation distance of 400,000 draws over 40 tokens
from the target, and of the acceptance from 1 minus the distance of draft and target.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from store_rows import setting, write_table

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from helpers.pairs import save_pair
from helpers.sequential_cascade import (
    SETTINGS,
    Pair,
    SequentialCascade,
    pair_of,
    random_router,
)
from helpers.tiny import ragged_records, tiny_tokenizer

from caskd.models.decoding import (
    TOKEN_RULES,
    TokenCascade,
    TokenCascadeAnswer,
    accept_or_redraw,
    draw,
    load_for_decoding,
    target_distribution,
)

GAMMAS = (1, 2, 4, 8, 16)
NEW_TOKENS = 12
V, DRAWS = 40, 400_000
LAW_NUMBERS = {
    "spec": 0.0, "chow": 0.8, "diff": 0.02, "opt": 0.3, "token-v1": 0.02, "token-v2": 0.02,
    "token-v3": 0.5, "entropy": 3.0, "margin": 0.5, "call": -1.0, "router": 0.5, "rsd": 0.02,
}  # fmt: skip


def load_pair(folder: Path, dtype: str) -> Pair:
    """Both models in one dtype."""
    small, large = (
        load_for_decoding(str(folder / name), "--model", dtype=dtype, device="cpu")
        for name in ("small", "large")
    )
    return small, large


def answers(
    pair: Pair, rule: str, gamma: int, prompts: Sequence[list[int]]
) -> Iterator[tuple[TokenCascadeAnswer, int]]:
    """Each answer, and its flips."""
    router = random_router(pair)
    cascade = TokenCascade(*pair_of(rule, pair), rule, SETTINGS[rule], gamma, router)
    for prompt in prompts:
        answer = cascade.answer(prompt, NEW_TOKENS)
        yield answer, cascade.num_flips(prompt, answer.token_ids)


def equality(folder: Path, rule: str, prompts: Sequence[list[int]]) -> list[dict[str, Any]]:
    """A row for each gamma."""
    pair = load_pair(folder, "float64")
    sequential = SequentialCascade(pair, random_router(pair), NEW_TOKENS)
    wanted = [sequential(rule, prompt) for prompt in prompts]
    rows = []
    for gamma in GAMMAS:
        found = [answer for answer, _ in answers(pair, rule, gamma, prompts)]
        differing = sum(
            (one.token_ids, one.num_large_tokens) != (ids, sum(large))
            for one, (ids, large) in zip(found, wanted, strict=True)
        )
        tokens = sum(len(one.token_ids) for one in found)
        print(f"{rule}, gamma {gamma}: {differing} of {len(found)} answers differ", flush=True)
        rows.append(
            {
                "rule": rule,
                "number": SETTINGS[rule] if TOKEN_RULES[rule].setting else "",
                "gamma": gamma,
                "prompts": len(found),
                "answers_that_differ": differing,
                "tokens": tokens,
                "large_share": round(sum(one.num_large_tokens for one in found) / tokens, 4),
                "drafted": sum(one.num_drafted for one in found),
                "accepted": sum(one.num_accepted for one in found),
                "small_forwards": sum(one.num_small_forwards for one in found),
                "large_forwards": sum(one.num_large_forwards for one in found),
            }
        )
    return rows


def flips(folder: Path, rule: str, prompts: Sequence[list[int]]) -> list[dict[str, Any]]:
    """One row: flips at gamma 4, and answers that differ from those at gamma 1."""
    pair = load_pair(folder, "bfloat16")
    short, found = (list(answers(pair, rule, gamma, prompts)) for gamma in (1, 4))
    tokens = sum(len(one.token_ids) for one, _ in found)
    num = sum(flipped for _, flipped in found)
    changed = sum(a.token_ids != b.token_ids for (a, _), (b, _) in zip(short, found, strict=True))
    print(f"{rule}, bfloat16: {num} of {tokens} tokens flip", flush=True)
    row = {"rule": rule, "prompts": len(found), "tokens": tokens, "flips": num}
    return [row | {"flip_rate": round(num / tokens, 5), "answers_that_depend_on_gamma": changed}]


def law() -> Iterator[dict[str, Any]]:
    """A row for each rule."""
    generator = torch.Generator().manual_seed(1)
    logits = 3.0 * torch.randn(2, 1, V, generator=generator, dtype=torch.float64)
    q, p = logits.softmax(-1).unbind()
    for name, rule in TOKEN_RULES.items():
        number = LAW_NUMBERS[name]
        scores = None if rule.score is None else torch.tensor([number + 0.1], dtype=q.dtype)
        target = target_distribution(rule, number, q, p, scores)
        uniforms = torch.rand(
            DRAWS, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64
        )
        drafted = draw(q.expand(DRAWS, V).contiguous(), uniforms[:, 0].contiguous())
        accepted, emitted = accept_or_redraw(
            drafted, q.expand(DRAWS, V), target.expand(DRAWS, V), uniforms[:, 1:]
        )
        found = torch.bincount(emitted, minlength=V).double() / DRAWS
        distance = float(0.5 * (found - target[0]).abs().sum())
        overlap = float(torch.minimum(q, target).sum())
        print(f"{name}: {distance:.5f} from its target", flush=True)
        yield {
            "rule": name,
            "draws": DRAWS,
            "V": V,
            "distance_from_target": round(distance, 5),
            "acceptance": round(float(accepted.double().mean()), 5),
            "1_minus_distance_of_draft_and_target": round(overlap, 5),
        }


def main() -> None:
    """Write the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--notes", default="")
    args = parser.parse_args()
    columns = {"torch": torch.__version__, **setting(args.notes)}
    write_table("token_cascade_law", list(law()), columns)
    tokenizer = tiny_tokenizer()
    records = ragged_records(args.prompts)
    prompts = [tokenizer(record["prompt"])["input_ids"] for record in records]
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(args.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        save_pair(Path(name))
        for table, measure in (("equality", equality), ("bfloat16", flips)):
            parts = pool.map(partial(measure, Path(name), prompts=prompts), TOKEN_RULES)
            rows = [row for part in parts for row in part]
            write_table(f"token_cascade_{table}", rows, columns)


if __name__ == "__main__":
    main()
