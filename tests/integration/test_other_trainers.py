"""The examples that train from a store in other people's loops: the losses of `caskd train`."""

import runpy
from pathlib import Path

import pytest
from helpers.training import capture, config_for, read_metrics

from caskd.train import train

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trainers")
    capture(root, num=20)
    return root


@pytest.fixture(scope="module")
def expected(root: Path) -> list[float]:
    """Losses of two steps of `caskd train` with the settings of the examples."""
    options = {"steps": 2, "objective": "cat-dist", "schedule": "constant", "weight_decay": 0.01}
    train(config_for(root, **options, lr=1e-3, clip_grad_norm=0))
    return [line["loss"] for line in read_metrics(root / "run")]


@pytest.mark.slow
def test_a_loop_of_accelerate(root: Path, expected: list[float]) -> None:
    main = runpy.run_path(str(EXAMPLES / "accelerate_loop.py"))["main"]
    student, store = str(root / "student"), str(root / "store")
    losses = main([student, str(root / "accelerate"), store, "--steps", "2"])
    assert losses == pytest.approx(expected, abs=2e-4)
    assert (root / "accelerate" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trls_sft_trainer(
    root: Path, expected: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl", reason="trl is not installed: examples/trl_sft.py is not run")
    main = runpy.run_path(str(EXAMPLES / "trl_sft.py"))["main"]
    student, store = str(root / "student"), str(root / "store")
    main([student, str(root / "trl"), store, "--steps", "1"])
    assert f"'loss': '{expected[0]:.4g}'" in capsys.readouterr().out
    assert (root / "trl" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightnings_trainer(root: Path, expected: list[float]) -> None:
    pytest.importorskip(
        "lightning", reason="lightning is not installed: examples/lightning_loop.py is not run"
    )
    main = runpy.run_path(str(EXAMPLES / "lightning_loop.py"))["main"]
    words = [str(root / "student"), str(root / "lightning"), str(root / "store"), "--steps", "2"]
    losses = main([*words, "--accelerator", "cpu"])
    assert losses == pytest.approx(expected, abs=2e-4)
    assert (root / "lightning" / "model.safetensors").exists()
