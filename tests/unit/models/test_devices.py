"""Devices that a flag may name, and errors of memory as one kind."""

import pytest
import torch
from helpers.tiny import save_tiny, write_jsonl

from caskd.cli.main import main
from caskd.models import fixed_kernels, memory_errors, pick_device
from caskd.store.errors import UsageError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tpu", "expected auto, cpu, cuda or cuda:N"),
        ("cuda:x", "expected auto, cpu, cuda or cuda:N"),
        ("cuda:\u0663", "expected auto"),
        ("cuda:", "expected auto, cpu, cuda or cuda:N"),
        ("meta", "expected auto, cpu, cuda or cuda:N"),
        ("mps", "expected auto, cpu, cuda or cuda:N"),
        ("cuda:99", "no CUDA device|expected cuda:0 to"),
    ],
)
def test_devices_that_are_not_present_are_refused(name, said):
    with pytest.raises(UsageError, match=f"--device {name}: .*({said})"):
        pick_device(name)


def test_the_cpu_by_name():
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_predict_refuses_a_device_in_one_line(device, tmp_path, capsys):
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "ab", "response": "c"}])
    words = ["predict", "--model", str(save_tiny(tmp_path / "m")), "--data", str(data)]
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "p.parquet"), "--device", device]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--device {device}" in error
    assert "expected auto, cpu, cuda or cuda:N" in error


def test_deterministic_kernels_end_with_the_block():
    with fixed_kernels(on=True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with fixed_kernels(on=False):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "said",
    ["DefaultCPUAllocator: can't allocate memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"],
)
def test_every_way_of_running_out_of_memory_is_one(said):
    with pytest.raises(MemoryError, match=said.split(":")[0]), memory_errors():
        raise RuntimeError(said + "\nand a trace")
    with pytest.raises(RuntimeError, match="a size"), memory_errors():
        raise RuntimeError("a size does not match")


@pytest.mark.parametrize("command", ["plan", "precompute", "predict"])
@pytest.mark.parametrize("name", ["mps", "meta", "cuda:nonsense", "cuda:-1"])
def test_every_command_refuses_it_before_it_writes(command, name, tmp_path, capsys):
    save_tiny(tmp_path / "model")
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a", "response": "b"}])
    words = ["--data", str(data), "--device", name]
    words += ["--model" if command == "predict" else "--teacher", str(tmp_path / "model")]
    out = tmp_path / ("out.parquet" if command == "predict" else "out")
    words += ["--out" if command == "predict" else "--store", str(out)]
    capsys.readouterr()
    assert main([command, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--device {name}" in line
    assert "cuda:N" in line
    assert not out.exists()
