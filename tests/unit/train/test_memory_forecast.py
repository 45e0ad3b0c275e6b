"""The forecast of memory follows the arithmetic of ZeRO, and its advice helps."""

from dataclasses import replace

import pytest

from caskd.train.run.memory_forecast import RunSize, forecast, remedies, table

MILLION = 10**6
SIZE = RunSize(
    num_parameters=100 * MILLION,
    num_trained=100 * MILLION,
    largest_layer=20 * MILLION,
    num_layers=12,
    hidden_size=768,
    tokens=4096,
    tile_bytes=64 * MILLION,
    value_bytes=2,
    adam=True,
    stage=1,
    num_ranks=4,
    offload=False,
    recompute=False,
)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 200, 200, 1200), (1, 200, 400, 300), (2, 200, 100, 300), (3, 90, 100, 300)],
)
def test_stages_divide_what_they_say(
    stage: int, weights: float, gradients: float, optimizer: float
) -> None:
    """16 bytes a parameter (arXiv 1910.02054), and 2 more where gradients are summed in float32."""
    figures = forecast(replace(SIZE, stage=stage))
    assert figures.weights == weights * MILLION
    assert figures.gradients == gradients * MILLION
    assert figures.optimizer == optimizer * MILLION


@pytest.mark.parametrize(("stage", "optimizer"), [(0, 800), (1, 300), (2, 300), (3, 300)])
def test_stage_0_in_float32_has_no_second_copy_of_the_weights(stage: int, optimizer: int) -> None:
    """There the optimizer updates the weights themselves: two moments, 8 bytes a parameter."""
    figures = forecast(replace(SIZE, stage=stage, value_bytes=4))
    assert figures.optimizer == optimizer * MILLION


def test_offload_moves_the_optimizer_to_the_host() -> None:
    figures = forecast(replace(SIZE, offload=True))
    assert figures.optimizer == 0
    assert figures.host == 300 * MILLION


def test_frozen_weights_need_no_optimizer() -> None:
    figures = forecast(replace(SIZE, num_trained=MILLION, num_ranks=1))
    assert figures.optimizer == 12 * MILLION
    assert figures.weights == 200 * MILLION


def test_advice_names_what_saves_most_first() -> None:
    activations_rule = replace(SIZE, tokens=65536)
    assert remedies(activations_rule, "--micro-batch-size 8")[:2] == [
        "--gradient-checkpointing",
        "--micro-batch-size 8",
    ]
    weights_rule = replace(SIZE, tokens=64, num_ranks=1)
    assert remedies(weights_rule, "--micro-batch-size 8")[0] == "--lora-rank 16"


def test_advice_does_not_repeat_what_is_on() -> None:
    small = replace(SIZE, recompute=True, offload=True, stage=3, num_trained=1)
    assert remedies(small, None) == []


def test_the_table_has_every_stage() -> None:
    assert len(list(table(SIZE))) == 5
