"""Pretrained weights for rewards: sources, messages and incomplete models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import logging

from marble_cli.pretrained import (
    HUB,
    TorchvisionCrop,
    check_complete,
    check_empty,
    check_tensors,
    loading,
    read_pickled,
    resolve_source,
)


def test_source_is_a_folder_or_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_source(str(tmp_path / "model")) == str(tmp_path / "model")
    assert resolve_source("~/model") == str(tmp_path / "model")
    assert resolve_source("openai/clip-vit-large-patch14") == "openai/clip-vit-large-patch14"


@pytest.mark.parametrize("source", ["./absent", "/absent", "~/absent"])
def test_absent_folder_is_named_with_the_remedy(source: str) -> None:
    with pytest.raises(OSError, match=r"there is no folder '.*absent'.* Convert it first\."):
        resolve_source(source, "Convert it first.")


def test_every_failure_of_loading_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(OSError, match="cannot be loaded") as raised,
        loading("the model 'x'", "a config.json"),
    ):
        raise KeyError("first line.\nsecond line")
    assert str(raised.value).startswith("the model 'x' cannot be loaded: ")
    assert str(raised.value).endswith(f". Expected a config.json. {HUB}")


@pytest.mark.parametrize("shown", [True, False])
def test_loading_hides_progress_bars_and_restores_them(shown: bool) -> None:
    before = logging.is_progress_bar_enabled()
    switch = logging.enable_progress_bar if shown else logging.disable_progress_bar
    try:
        switch()
        with loading("x", "y"):
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() is shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_model_with_random_parameters_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    check_complete(model, {"missing_keys": ["position_ids"]})  # a buffer, which is not drawn at random
    with pytest.raises(ValueError, match="its weights lack 1 parameters, bias among them"):
        check_complete(model, {"missing_keys": ["bias"]})


def test_tensors_must_have_names_and_shapes() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3, 1)}
    check_tensors({**expected, "c": torch.zeros(1)}, expected)
    with pytest.raises(ValueError, match="it lacks 1 of 2 tensors, b among them"):
        check_tensors({"a": torch.zeros(2)}, expected)
    with pytest.raises(ValueError, match=r"b has shape \[3\], not \[3, 1\]"):
        check_tensors({**expected, "b": torch.zeros(3)}, expected)


def test_a_pickle_is_read_unless_it_would_run_code(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "tensors.pt")
    assert read_pickled(tmp_path / "tensors.pt")["a"].tolist() == [1, 1]
    torch.save(np.random.default_rng(0), tmp_path / "object.pt")
    with pytest.raises(ValueError, match="it is no torch file, or holds more than tensors"):
        read_pickled(tmp_path / "object.pt")


def test_only_a_new_or_empty_folder_is_written(tmp_path: Path) -> None:
    check_empty(tmp_path / "new")
    check_empty(tmp_path)
    (tmp_path / "mine").touch()
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(OSError, match=r"is not empty. Name a new folder\."):
            check_empty(folder)


@pytest.mark.parametrize("excess", range(12))
def test_centre_crop_begins_as_in_torchvision(excess: int) -> None:
    begin = [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6][excess]  # int(round(excess / 2.0))
    side, mean, std = 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    processor = TorchvisionCrop(
        size={"shortest_edge": side}, crop_size=side, image_mean=mean, image_std=std, do_resize=False
    )
    for size in ((side + excess, side), (side, side + excess)):
        image = np.random.default_rng(0).integers(0, 256, (3, *size), np.uint8)
        made = processor([image], input_data_format="channels_first", return_tensors="np")["pixel_values"][0]
        kept = image[:, begin:, :] if size[0] > side else image[:, :, begin:]
        expected = (kept[:, :side, :side].transpose(1, 2, 0) / 255 - mean) / std
        np.testing.assert_allclose(made.transpose(1, 2, 0), expected, rtol=0, atol=1e-5)
