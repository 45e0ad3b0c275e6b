"""Ranks, micro-batches, accumulation and ZeRO stages do not change the result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import capture, config_for
from helpers.warm import run_ranks
from steps_driver import TIMEOUT_MINUTES
from transformers import AutoModelForCausalLM

from caskd.store import TeacherStore
from caskd.train.data import collate, fields_to_read
from caskd.train.loss import cascade_aware_loss
from caskd.train.objectives import OBJECTIVES
from caskd.train.run.plan import plan_run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

DRIVER = Path(__file__).with_name("steps_driver.py")
STAGES = (0, 1, 2, 3)
REFERENCE, MASKED_REFERENCE = "1:float32:16:dist", "1:float32:16:cat-dist"
ACCUMULATED = tuple(f"{stage}:float32:4:dist" for stage in STAGES)
ONE_RANK = (REFERENCE, *ACCUMULATED, MASKED_REFERENCE)
DTYPES = ("float32", "bfloat16")
TWO_RANKS = (
    *(f"{stage}:{dtype}:2:dist" for stage in STAGES for dtype in DTYPES),
    "2:float32:2:cat-dist",
    *(f"{stage}:float32:t80:dist" for stage in STAGES),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    capture(directory)
    return directory


def drive(root: Path, num_ranks: int, cases: tuple[str, ...]) -> dict[str, Any]:
    out = root / f"{num_ranks}.pt"
    words = [str(DRIVER), str(root), str(out), *cases]
    run_ranks(num_ranks, words, TORCH_EXTENSIONS_DIR=str(root / "jit"))
    assert not (root / "jit").exists(), "an operator was compiled at start-up"
    return torch.load(out)


@pytest.fixture(scope="module")
def one(root: Path) -> dict[str, Any]:
    return drive(root, 1, ONE_RANK)


@pytest.fixture(scope="module")
def two(root: Path) -> dict[str, Any]:
    return drive(root, 2, TWO_RANKS)


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Relative 2-norm of the difference over all tensors together."""
    assert ours.keys() == theirs.keys()
    difference = sum(float((ours[n].double() - theirs[n].double()).square().sum()) for n in ours)
    size = sum(float(theirs[n].double().square().sum()) for n in theirs)
    return (difference / size) ** 0.5


def plain_loss(root: Path, model: Any, step: int) -> torch.Tensor:
    """A step's loss by plain torch: one batch, dense logits."""
    config = config_for(root, global_batch_size=16, micro_batch_size=16, objective="dist")
    plan = plan_run(config)
    store = TeacherStore.open(config.store[0])
    examples = plan.order.examples_for_step(step, 16)
    assert len(set(store.row_counts()[examples])) > 4, "the responses must have unequal lengths"
    batch = collate(store.read(examples, fields_to_read(OBJECTIVES["dist"])), pad_id=0)
    hidden = model.model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    sums = cascade_aware_loss(
        hidden.flatten(0, 1)[batch.gather_index],
        model.lm_head.weight,
        batch.labels,
        batch.teacher,
        objective="dist",
        impl="dense",
    )
    return sums.loss / sums.num_rows


def student(root: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)


def test_one_rank_has_the_gradient_of_plain_torch(root: Path, one: dict[str, Any]) -> None:
    model = student(root)
    value = plain_loss(root, model, 0)
    value.backward()
    gradient, loss = (
        {f"model.{n}": p.grad for n, p in model.named_parameters()},
        float(value.detach()),
    )
    assert distance(one[REFERENCE]["gradient"], gradient) < 1e-6
    assert one[REFERENCE]["losses"][0] == pytest.approx(loss, rel=1e-6)
    norm = sum(float(g.double().square().sum()) for g in gradient.values()) ** 0.5
    assert norm > 0.02, "the clipping must have something to clip"
    for case in (REFERENCE, *ACCUMULATED):
        assert one[case]["norms"][0] == pytest.approx(norm, rel=1e-5), case


def test_one_rank_learns_as_plain_torch_does(root: Path, one: dict[str, Any]) -> None:
    """Torch's AdamW and clipping, the learning rate by hand; all other cases equal this one."""
    model = student(root)
    matrices, vectors = (
        [p for p in model.parameters() if (p.ndim > 1) == m] for m in (True, False)
    )
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step, lr in enumerate((1e-3, 0.55e-3, 0.1e-3)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = plain_loss(root, model, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.02)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert one[REFERENCE]["losses"] == pytest.approx(losses, rel=1e-6)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    assert distance(one[REFERENCE]["weights"], weights) < 1e-6


def test_every_group_waits_as_long_as_it_was_told(two: dict[str, Any]) -> None:
    """DeepSpeed makes groups of its own, in which a rank would wait for half an hour."""
    assert two["seconds_groups_wait"] == {60 * TIMEOUT_MINUTES}


@pytest.mark.parametrize("case", ACCUMULATED)
def test_accumulation_and_stage_change_nothing(one: dict[str, Any], case: str) -> None:
    check_same(one[case], one[REFERENCE])


@pytest.mark.parametrize("stage", STAGES)
def test_packed_parts_of_a_token_budget_change_nothing(
    one: dict[str, Any], two: dict[str, Any], stage: int
) -> None:
    """Steps have unequal numbers of micro-steps then, and unequal numbers of examples in each."""
    check_same(two[f"{stage}:float32:t80:dist"], one[REFERENCE])


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_equal_one(one: dict[str, Any], two: dict[str, Any], stage: int) -> None:
    check_same(two[f"{stage}:float32:2:dist"], one[REFERENCE])


def test_a_mask_changes_nothing_of_that(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Ranks keep different numbers of rows; the divisor is the number of all rows of the step."""
    assert 0 < one[MASKED_REFERENCE]["keep"][0] < 1
    check_same(two["2:float32:2:cat-dist"], one[MASKED_REFERENCE])


def check_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert distance(ours["gradient"], theirs["gradient"]) < 1e-6
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-6)
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-5)
    # Adam divides by the gradient's own size, which magnifies rounding where that is tiny.
    assert distance(ours["weights"], theirs["weights"]) < 1e-5
    assert ours["keep"] == theirs["keep"]


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_is_near(one: dict[str, Any], two: dict[str, Any], stage: int) -> None:
    """A gradient that lost a micro-batch or a rank would be off by tens of percent."""
    ours = two[f"{stage}:bfloat16:2:dist"]
    assert ours["losses"][0] == pytest.approx(one[REFERENCE]["losses"][0], rel=0.1)
    assert ours["norms"][0] == pytest.approx(one[REFERENCE]["norms"][0], rel=0.1)


@pytest.mark.parametrize("case", TWO_RANKS)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(
    two: dict[str, Any], case: str
) -> None:
    assert two[case]["poisoned_applied"] is False
    assert two[case]["poisoned_changed"] == []
