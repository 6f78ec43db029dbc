"""What only models of videos have: frames, decoding in parts, and pipelines with two transformers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from marble_cli.errors import RequestError
from marble_cli.policy.cost import decoding_flop
from marble_cli.policy.decoding import DECODED_PIXELS
from marble_cli.policy.size import make_skeleton, model_size
from tests.policy.families.cases import Case

VIDEOS = pytest.mark.parametrize("case", ["wan", "wan_ti2v"], indirect=True)


@VIDEOS
def test_as_many_videos_are_decoded_at_once_as_memory_is_bounded_for(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VAE holds the four frames of a latent at a time."""
    policy: Any = case.policy
    x0 = case.start()
    whole, sizes, decode = policy.decode(x0)[0], list[int](), policy.family.decode
    assert whole.shape == (3, 5, 3, 32, 48)
    assert (policy.frames, policy.fps) == (5, 16 if case.name == "wan" else 24)
    monkeypatch.setattr(policy.family, "decode", lambda part: sizes.append(len(part)) or decode(part))
    for pixels, expected in ((1, [1, 1, 1]), (2 * 4 * 48 * 32, [2, 1]), (3 * 4 * 48 * 32, [3])):
        monkeypatch.setitem(DECODED_PIXELS, "cpu", pixels)
        sizes.clear()
        parts = policy.decode(x0)[0].int()
        assert (parts - whole.int()).abs().max() <= 1
        assert sizes == expected


@pytest.mark.parametrize("case", ["wan_ti2v"], indirect=True)
@pytest.mark.parametrize("latents", [1, 5])
def test_flop_of_decoding_are_those_of_the_whole_video(case: Case, latents: int) -> None:
    config = json.loads((Path(case.model.path) / "vae" / "config.json").read_text())
    vae = make_skeleton(config, "diffusers", "AutoencoderKLWan")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(torch.empty(1, 4, latents, 4, 6, device="meta"))
    assert decoding_flop(vae, (4, latents, 4, 6)) == counter.get_total_flops() > 0


@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_more_frames_are_more_tokens_and_more_work(case: Case) -> None:
    sizes = [model_size(replace(case.model, frames=frames)) for frames in (1, 9)]
    assert [size.tokens for size in sizes if size] == [24, 72]
    less, more = (size.cost.forward for size in sizes if size)
    assert more > 2.5 * less  # the network's; attention grows faster


@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_two_transformers_are_refused(tiny_folder: Callable[[str], Path], tmp_path: Path, case: Case) -> None:
    """As Wan 2.2 A14B has them."""
    folder = shutil.copytree(tiny_folder("wan"), tmp_path / "a14b")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.875}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(RequestError, match=r"two transformers.*Expected a model with one, such as Wan-AI/"):
        model_size(replace(case.model, path=str(folder)))
