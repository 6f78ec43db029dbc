"""The presets for a card of 24 GB compose, and their plans fit, by configurations that the package has."""

from dataclasses import replace
from pathlib import Path

import pytest

from marble_cli.config.compose import compose
from marble_cli.config.enums import Offload, Quantization
from marble_cli.plan.cards import KINDS, tabulate_cards
from marble_cli.plan.memory import Checkpointing, memory
from marble_cli.plan.plan import plan
from marble_cli.policy.size import model_size

# Billions of parameters of the transformer, as published.
PRESETS = {
    "sd35m_24gb": 2.24,
    "z_image_24gb": 6.15,
    "flux_24gb": 11.9,
    "flux_24gb_offload": 11.9,
    "qwen_image_24gb": 20.4,
    "qwen_image_24gb_offload": 20.4,
    "flux_kontext_24gb": 11.9,
    "flux2_klein_24gb": 3.88,
    "qwen_image_edit_24gb": 20.4,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_fits_a_card_of_24_gb(preset: str) -> None:
    config = Checkpointing(True).applied(compose([f"preset={preset}", "data.root=somewhere"]))
    size = model_size(config.model)
    assert size is not None
    assert model_size(replace(config.model, offload=Offload.none, quantization=Quantization.none)) is size
    assert size.network / 1e9 == pytest.approx(PRESETS[preset], rel=0.01)
    assert config.model.resolution == 512
    needed = memory(config, size)
    assert needed.peak <= 24 * 2**30
    assert 1.0 < size.cost.backward / size.cost.forward < 1.4, (
        "a LoRA's backward pass gives no weight's gradient; attention's, of many tokens, takes longer"
    )
    table = tabulate_cards(config, size)
    rows = {cells[0]: cells for cells in zip(*(column.cells for column in table.columns), strict=True)}
    model = config.model
    name = next(name for name, kind in KINDS.items() if kind == (model.quantization, model.offload))
    chosen, plain = rows[name], rows["none"]
    assert int(chosen[2].split(" / ")[1]) >= config.trainer.micro_batch_size
    if model.offload is Offload.blocks:
        assert plain[2] == "- / -", "it does not fit without"
        assert chosen[2].startswith("- / "), "it needs gradient checkpointing"
        assert 0.95 * size.network < needed.offloaded / 2 < size.network
    # 40 GiB of Qwen-Image with a picture's 4096 tokens leave room on 80 GB with gradient checkpointing alone.
    without, checkpointed = (int(count) for count in plain[4].replace("-", "0").split(" / "))
    assert (preset != "qwen_image_edit_24gb") <= without < checkpointed


def test_dry_run_prints_peak_memory_and_what_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    elsewhere = [f"rewards.{name}.device=cpu" for name in ("pickscore", "clipscore")]
    config = compose(["preset=sd35m_24gb", f"run.dir={tmp_path / 'run'}", *elsewhere])
    plan(config)
    said = " ".join(capsys.readouterr().out.split())
    assert "GiB in all, with temporary tensors" in said
    assert "model.gradient_checkpointing=auto: kept, training needs about" in said
    assert "model.quantization least memory 24 GB 48 GB 80 GB" in said
    size = model_size(config.model)
    assert size is not None
    alone = (next(iter(column.cells)) for column in tabulate_cards(config, size).columns)
    assert " ".join(map(str, alone)) in said, "rewards on the CPU take nothing of a card"
    assert "No prompts yet" in said
