"""`model.compile`: what auto chooses, and that it says why."""

import re
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from marble_cli.config.enums import Switch
from marble_cli.policy.compilation import Compilation, choose_compilation

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which Triton can compile: folders `bin` with gcc, and `include` with Python's headers."""
    for name, mode in (("bin/gcc", 0o755), ("include/Python.h", 0o644)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch(mode)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path / "include")})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An Old GPU")
    monkeypatch.setitem(sys.modules, "triton", pytest)  # any module with a spec
    return tmp_path


@pytest.mark.parametrize("device", [CPU, GPU])
def test_true_and_false_look_at_nothing(device: torch.device) -> None:
    assert choose_compilation(Switch.true, device) == Compilation(True)
    assert choose_compilation(Switch.false, device) == Compilation(False)


def test_auto_compiles_for_a_gpu(machine: Path) -> None:
    chosen = choose_compilation(Switch.auto, GPU)
    assert chosen.on
    assert str(chosen).startswith("the transformer's blocks are compiled (model.compile=auto: ")


@pytest.mark.parametrize("name", ["clang", "cc of my own"])
def test_auto_takes_another_compiler(machine: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    own = (machine / "bin/gcc").rename(machine / "bin" / name)
    if name != "clang":
        assert not choose_compilation(Switch.auto, GPU).on
        monkeypatch.setenv("CC", str(own))
    assert choose_compilation(Switch.auto, GPU).on


def refused(device: torch.device = GPU) -> str:
    """Return why `auto` does not compile."""
    chosen = choose_compilation(Switch.auto, device)
    assert not chosen.on
    pattern = r"the transformer's blocks are not compiled \(model\.compile=auto: (.*)\)"
    found = re.fullmatch(pattern, str(chosen))
    assert found is not None
    return found[1]


def test_auto_says_what_keeps_it_from_compiling(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(CPU) == "the device is cpu"
    with monkeypatch.context() as change:
        change.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
        assert refused() == "An Old GPU is older than what Triton compiles for"
    with monkeypatch.context() as change:
        change.setattr("importlib.util.find_spec", lambda name: None)
        assert refused() == "Triton is not installed"
    with monkeypatch.context() as change:
        change.setenv("CC", "no-such-compiler")
        assert refused().startswith("there is no C compiler that CC names here; install gcc")
    (machine / "include/Python.h").unlink()
    assert "Python.h is missing; install Python's headers" in refused()
    (machine / "bin/gcc").unlink()
    assert refused().startswith("there is no C compiler here; install gcc")
