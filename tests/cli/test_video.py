"""A model of videos from the command line: rewards of frames, strips, MP4 files, and refusals."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from tests.policy.families.pipelines import TINY

Marble = Callable[..., Any]


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        TINY["wan"].make().save_pretrained(folder)
    return folder


@pytest.fixture
def overrides(wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of two steps with a reward of videos, one of pictures, and a tracker that takes videos."""
    offered = tmp_path / "site" / "frames-1.0.dist-info"
    offered.mkdir(parents=True)
    (offered / "METADATA").write_text("Metadata-Version: 2.1\nName: frames\nVersion: 1.0\n")
    (offered / "entry_points.txt").write_text(
        "[marble.rewards]\nmotion = frame_plugins:motion\n[marble.trackers]\nshelf = frame_plugins:Shelf\n"
    )
    for folder in (tmp_path / "site", Path(__file__).parents[1] / "rewards"):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a boat\na cat\n")
    return [
        *("~preset", "model=wan", f"model.path={wan}", "model.resolution=48x32", "model.frames=5"),
        *("model.max_sequence_length=20", "model.precision=fp32", "model.device=cpu"),
        *(f"model.embedding_cache={tmp_path / 'cache'}", "model.compile=false", "model.lora.rank=2"),
        *("data=files", f"data.root={tmp_path}", "data.sources.prompts.train=p.txt"),
        *("data.sources.prompts.test=p.txt", "rewards=[motion,colorfulness]"),
        *("rewards.colorfulness.frames=first", "logging.trackers=[shelf]", "logging.images_every=1"),
        *("rollout.groups=2", "rollout.group_size=2", "rollout.steps=2"),
        *("trainer.steps=2", "trainer.eval_every=1", "trainer.checkpoint_every=1"),
        *("evaluation.prompts=2", "evaluation.steps=2"),
    ]


def frames_of(file: Path) -> tuple[np.ndarray, str]:
    """Return the frames [F, 32, 48, 3] of an MP4 file, and what ffmpeg says about it."""
    read = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(file), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(read, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, 32, 48, 3), done.stderr.decode()


def test_videos_are_trained_shown_and_generated(marble: Marble, overrides: list[str], tmp_path: Path) -> None:
    """The first step without the package that writes MP4 files, the second, of a resumed run, with it."""
    run, out = tmp_path / "run", tmp_path / "out"
    with pytest.MonkeyPatch.context() as missing:
        missing.setitem(sys.modules, "imageio_ffmpeg", None)
        done = marble("train", *overrides, f"run.dir={run}", "trainer.steps=1")
        assert done.code == 0, done.err
        kept = run / "samples" / "step-00000001"
        assert sorted(file.suffix for file in kept.iterdir()) == [".json", ".webp", ".webp"]
        assert (run / "log.txt").read_text().count("pip install 'marble-cli[video]'") == 1
        done = marble("generate", run, "--prompt", "a boat", "--output", out)
        assert (done.code, out.exists()) == (2, False)
        assert "pip install 'marble-cli[video]'" in " ".join(done.err.split())

    done = marble("train", *overrides, f"run.dir={run}")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["phase"] == "train"]
    assert [row["step"] for row in train] == [1, 2]
    assert all(row["reward/motion/mean"] > 0 and row["reward/motion/failed"] == 0 for row in train)
    assert all("reward/colorfulness/mean" in row for row in rows)

    kept = run / "samples" / "step-00000002"
    described = json.loads((kept / "samples.json").read_text())["samples"]
    assert [(row["file"], row["strip"]) for row in described] == [("00000.webp", True), ("00001.webp", True)]
    frames, said = frames_of(kept / "00000.mp4")
    assert len(frames) == 5
    assert "16 fps" in said
    with Image.open(kept / "00000.webp") as strip:
        assert strip.size == (4 * 48, 32)
        shown = np.array(strip.convert("RGB")).reshape(32, 4, 48, 3).swapaxes(0, 1)
    for place, index in enumerate((0, 1, 3, 4)):  # the MP4 file compresses colours
        assert np.abs(frames[index].mean((0, 1)) - shown[place].mean((0, 1))).max() < 8
    assert (run / "samples" / "step-00000002.png").is_file()
    notes, captions = (run / "shelf.txt").read_text().splitlines(), "['a boat', 'a cat']"
    assert notes[-2:] == [f"2 [2, 3, 32, 192] {captions}", f"2 ['00000.mp4', '00001.mp4'] {captions}"]

    done = marble("generate", run, "--prompt", "a boat", "--output", out)
    assert done.out.split() == [str(out / "000.mp4")]
    assert len(frames_of(out / "000.mp4")[0]) == 5
    done = marble("eval", run, "--output", tmp_path / "eval")
    assert done.code == 0, done.err
    assert (tmp_path / "eval" / "images.png").is_file()
    done = marble("report", run, "--output", tmp_path / "report.html")
    assert done.code == 0, done.err
    assert '<article class="strip"' in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("model.frames=6",),
            "model.frames=6: expected 1 more than a multiple of 4 for this model, such as 5",
        ),
        (("model.frames=null",), "model.frames=null:"),
        (("model=tiny", "model.frames=5"), "model.frames=5: tiny draws pictures"),
        (("model=tiny", "model.frames=null", "rewards=[motion]"), "rewards.motion scores videos"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_run(
    marble: Marble, overrides: list[str], tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    if "model=tiny" in more:
        overrides = [word for word in overrides if not word.startswith(("model", "rewards"))]
        overrides += ["rewards=[colorfulness]", "model.device=cpu"]
    done = marble("train", *overrides, *more, f"run.dir={tmp_path / 'run'}", "--dry-run")
    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_plan_counts_frames_and_a_picture_is_no_video(
    marble: Marble, overrides: list[str], tmp_path: Path
) -> None:
    done = marble("train", *overrides, f"run.dir={tmp_path / 'run'}", "--dry-run")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "videos 5 frames each, 0 MiB of the CPU's memory per process; to decode one takes" in said
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    done = marble("rewards", "score", "motion", "--image", tmp_path / "a.png", "--prompt", "a boat")
    assert done.code == 2
    assert "reward motion scores videos, and no picture" in " ".join(done.err.split())
    assert "videos alone" in marble("rewards", "show", "motion").out
