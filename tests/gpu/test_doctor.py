"""`marble doctor` and the dry run know the device."""

import subprocess
import sys

import pytest
import torch

from marble_cli.config.compose import compose
from marble_cli.doctor.gpu import examine_gpu
from marble_cli.doctor.machine import examine_machine
from marble_cli.plan.plan import plan
from tests.gpu.processes import environment


def test_doctor_names_the_device_and_finds_nothing_wrong(device: torch.device) -> None:
    findings = {finding.name: finding for finding in examine_machine()}
    assert [finding for finding in findings.values() if not finding.ok] == []
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        assert f"{properties.name} {properties.total_memory / 2**30:.0f} GiB" in findings["device"].detail


def test_the_gpu_computes_what_the_cpu_does(device: torch.device) -> None:
    assert [finding for finding in examine_gpu(device) if not finding.ok] == []


def test_the_command_exits_with_0(device: torch.device) -> None:
    command = [sys.executable, "-m", "marble_cli", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    if device.type == "cuda":
        assert torch.cuda.get_device_properties(device).name in done.stdout


def test_a_dry_run_plans_for_the_device(
    tiny_overrides: list[str], tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(compose([*tiny_overrides, f"run.dir={tmp_path}/run"]), "auto")
    assert "tiny" in capsys.readouterr().out
