"""Creating a config validates its options; the error is one line that names the flag."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from caskd.store.errors import UsageError
from caskd.train.config import TrainConfig
from caskd.train.objectives import OBJECTIVES, TAILS, resolve_unmasked
from caskd.train.resumable import RESUMABLE_CHANGES

REQUIRED = {"store": "s", "student": "m", "out": Path("o"), "steps": 3}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"global_batch_size": 0}, "--global-batch-size 0"),
        ({"micro_batch_size": -1}, "--micro-batch-size -1"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"lr": float("inf")}, "--lr inf"),
        ({"clip_grad_norm": -1.0}, "--clip-grad-norm -1.0"),
        ({"save_every": 0}, "--save-every 0"),
        ({"w": 1.5}, "--w 1.5"),
        ({"warmup_steps": 4}, "--warmup-steps is 4"),
        ({"lr": 0.0}, r"--lr\b.* 0\.0\b.*expected more than 0"),
        ({"lr": -1e-3}, r"--lr\b.* -0\.001\b.*expected more than 0"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, r"--lora-alpha\b.* 0\.0\b.*expected more than 0"),
        ({"mask_from_step": 3}, r"--mask-from-step 3.*--steps 3.*cat-dist"),
        (
            {"mask": "reachable", "objective": "xent", "mask_from_step": 3},
            r"--mask-from-step 3.*--steps 3.*--mask reachable",
        ),
    ],
)
def test_values_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        TrainConfig(**{**REQUIRED, **option})
    assert "\n" not in str(caught.value)


LABEL_ONLY = ("xent", "cat-xent", "cat-xent-l", "cat-xent-s", "random-xent")


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("flag", ["w", "final_w"])
def test_a_weight_below_1_contradicts_an_objective_of_the_label_alone(name: str, flag: str) -> None:
    options: dict[str, Any] = {**REQUIRED, "objective": name}
    if name.startswith("random-"):
        options["keep_fraction_from"] = Path("run")
    TrainConfig(**options, **{flag: 1.0})
    if name not in LABEL_ONLY:
        TrainConfig(**options, **{flag: 0.3})
        return
    other = name.replace("xent", "dist")
    with pytest.raises(
        UsageError, match=rf"{flag.replace('_', '-')} is 0\.3.*--objective {other},"
    ):
        TrainConfig(**options, **{flag: 0.3})
    if name != "random-xent":
        with pytest.raises(UsageError, match=rf"StoreDataset: w is 0\.3.*objective {other},"):
            resolve_unmasked(name, 0.3, "StoreDataset")


def test_the_flag_lists_the_table_of_objectives_in_its_order() -> None:
    hints = get_type_hints(TrainConfig)
    assert get_args(hints["objective"]) == tuple(OBJECTIVES)
    assert get_args(get_args(hints["tail"])[0]) == TAILS


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'cat-dost': unknown.*cat-dist"):
        TrainConfig(**{**REQUIRED, "objective": "cat-dost"})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_exactly_the_random_masks_need_the_fractions_of_a_run(name: str) -> None:
    needs = OBJECTIVES[name].needs_keep
    assert needs == name.startswith("random-")
    options: dict[str, Any] = {**REQUIRED, "objective": name}
    fractions = {"keep_fraction_from": Path("run")}
    TrainConfig(**options, **(fractions if needs else {}))
    with pytest.raises(UsageError, match=rf"--keep-fraction-from.*{name}|{name}.*--keep-fraction"):
        TrainConfig(**options, **({} if needs else fractions))


def test_what_a_resumed_run_may_change_exists() -> None:
    assert {field.name for field in fields(TrainConfig)} > RESUMABLE_CHANGES


def test_importing_the_options_costs_no_torch() -> None:
    code = (
        "import sys; from caskd.train import TrainConfig; TrainConfig;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'deepspeed')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
