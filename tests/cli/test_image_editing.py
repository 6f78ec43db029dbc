"""A model of image editing from the command line: rows with pictures, rewards that compare, and refusals."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from marble_cli.pictures import read_picture
from tests.policy.families.pipelines import TINY

Marble = Callable[..., Any]
WORDS = ("make it red", "make it blue", "turn it", "make it grey")


@pytest.fixture(scope="module")
def kontext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random FLUX.1 Kontext pipeline."""
    return random_pipeline("flux_kontext", tmp_path_factory)


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random FLUX.2-klein pipeline, which takes several pictures."""
    return random_pipeline("flux2_klein", tmp_path_factory)


def random_pipeline(name: str, folders: pytest.TempPathFactory) -> Path:
    folder = folders.mktemp(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        TINY[name].make().save_pretrained(folder)
    return folder


@pytest.fixture
def overrides(kontext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of two steps on four edits, with a reward that compares and one that does not."""
    offered = tmp_path / "site" / "kept-1.0.dist-info"
    offered.mkdir(parents=True)
    (offered / "METADATA").write_text("Metadata-Version: 2.1\nName: kept\nVersion: 1.0\n")
    (offered / "entry_points.txt").write_text("[marble.rewards]\nkept = condition_plugins:kept\n")
    for folder in (tmp_path / "site", Path(__file__).parents[1] / "rewards"):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    return [
        "~preset",
        "model=flux_kontext",
        f"model.path={kontext}",
        "model.resolution=48x32",
        "data.aspect_ratio_buckets=[48x32,32x48]",
        "model.max_sequence_length=20",
        "model.guidance=2.0",
        "model.precision=fp32",
        "model.device=cpu",
        f"model.embedding_cache={tmp_path / 'cache'}",
        "model.compile=false",
        "data=files",
        f"data.root={tmp_path}",
        "data.sources.prompts.train=p.jsonl",
        "data.sources.prompts.test=p.jsonl",
        "rewards=[compressibility,kept]",
        "rollout.groups=2",
        "rollout.group_size=2",
        "rollout.steps=2",
        "trainer.steps=2",
        "trainer.eval_every=2",
        "trainer.checkpoint_every=2",
        "evaluation.prompts=4",
        "evaluation.steps=2",
        "logging.wandb.mode=disabled",
    ]


def write_rows(folder: Path, **changes: Any) -> None:
    """Write four pictures, the last of them upright, and the rows that name them."""
    rows = []
    for i, words in enumerate(WORDS):
        shape = (60, 40, 3) if i == 3 else (40, 60, 3)
        pixels = np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"prompt": words, "image": f"{i}.png", **changes})
    write_lines(folder, rows)


def write_lines(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_model_of_image_editing_plans_trains_evaluates_exports_and_draws(
    marble: Marble, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = marble("train", *overrides, "run.dir=run", "--dry-run")
    assert planned.code == 0, planned.err
    assert "parameters, LoRA" in " ".join(planned.out.split())
    done = marble("train", *overrides, "run.dir=run")
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scored = [record for record in records if record.get("phase") != "eval" and "reward/kept/mean" in record]
    assert len(scored) == 2
    assert all(-255 <= record["reward/kept/mean"] < 0 for record in scored)
    drawn = [read_picture(tmp_path / f"run/samples/step-00000002/0000{i}.webp").shape for i in range(4)]
    assert drawn == [(3, 32, 48)] * 3 + [(3, 48, 32)], "each picture takes the bucket of its shape"

    done = marble("train", *overrides, "run.dir=run", "trainer.steps=3", "--resume", "auto")
    assert done.code == 0, done.err

    with monkeypatch.context() as narrow:
        narrow.setenv("COLUMNS", "40")
        done = marble("eval", "run", "--against", "base", "--output", "report")
    assert done.code == 0, done.err
    assert re.search(r"^kept +\d+ .* (undecided|rose|fell)$", done.out, re.MULTILINE), "one row, not cut"
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "kept" in json.dumps(report)

    done = marble("export", "run", "lora")
    assert done.code == 0, done.err
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file()
    done = marble("generate", "run", "--prompt", "make it red", "--image", "0.png", "--output", "drawn")
    assert done.code == 0, done.err
    done = marble("generate", "run", "--prompt", "make it red", "--image", "1.png", "--output", "other")
    one, other = (np.asarray(Image.open(tmp_path / name / "000.png")) for name in ("drawn", "other"))
    assert one.shape == (32, 48, 3)
    assert (one != other).any()


def test_a_model_of_several_pictures_plans_trains_shows_them_and_draws(
    marble: Marble, overrides: list[str], klein: Path, tmp_path: Path
) -> None:
    """Rows have one picture or two, which keep their shapes; groups without signal are redrawn."""
    pictures = (["0.png"], ["1.png", "3.png"], ["2.png", "3.png"], ["3.png"])
    rows = [{"prompt": words, "image": own} for words, own in zip(WORDS, pictures, strict=True)]
    write_lines(tmp_path, rows)
    model = [
        "model=flux2_klein",
        f"model.path={klein}",
        "model.guidance=null",
        "model.max_sequence_length=40",
    ]
    own = ("model=", "model.path", "model.guidance", "model.max_sequence")
    overrides = [word for word in overrides if not word.startswith(own)]
    chosen = [*overrides, *model, "data.aspect_ratio_buckets=null", "run.dir=run"]
    planned = marble("train", *chosen, "--dry-run")
    assert planned.code == 0, planned.err
    said = " ".join(planned.out.split())
    assert "of sizes 48x32 from 1 picture (50%), 48x32 from 2 pictures (50%)" in said
    assert "kept nothing 2 of 4 prompts" in said, "it compares with one picture"
    done = marble("train", *chosen, "trainer.steps=1", "trainer.eval_every=1", "rollout.dead_groups=redraw")
    assert done.code == 0, done.err
    (record,) = [
        row
        for row in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        if row["phase"] == "eval" and row["step"] == 1
    ]
    assert record["reward/kept/applicable"] == 2
    assert record["reward/compressibility/applicable"] == 4
    folder = tmp_path / "run/samples/step-00000001"
    alone, both = (read_picture(folder / f"0000{i}-condition.webp") for i in (0, 1))
    assert alone.shape == both.shape == (3, 32, 48)
    assert both[:, 0, :24].min() == 255, "the first of two fills its half from side to side alone"
    assert alone[:, 0].min() < 255
    words = ["generate", "run", "--prompt", "a", "--output"]
    for output, given in (("one", "13"), ("two", "31")):
        done = marble(*words, output, *(word for i in given for word in ("--image", f"{i}.png")))
        assert done.code == 0, done.err
    one, two = (np.asarray(Image.open(tmp_path / name / "000.png")) for name in ("one", "two"))
    assert (one != two).any(), "their order counts"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("several", r"kontext.* starts from 1 picture per prompt, and there are more in .*p\.jsonl, line 1;"),
        ("bare", r"starts from a picture, and there is none in data\.sources\.prompts: .*p\.jsonl, line 1;"),
        ("cut", r"data\.sources\.prompts: .*p\.jsonl, line 2: .*1\.png cannot be read"),
        ("text-to-image", r"path=tiny starts from no picture, and there is one in .*line 1;.*image_key=null"),
        ("size", r"data\.sources\.prompts: .*p\.jsonl, line 1: resolution=36: expected a multiple of 8"),
        ("bucket", r"data\.aspect_ratio_buckets=48x36: expected each side a multiple of 8 for this model"),
        (
            "no picture",
            r"data\.aspect_ratio_buckets: no row has a picture, .* Expected null; .* resolution\.",
        ),
        ("unused", r"rewards\.kept applies to no prompt: .*the picture it was edited from"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_rows_and_models_that_do_not_agree_are_refused_before_a_run(
    marble: Marble, overrides: list[str], tmp_path: Path, change: str, said: str, dry_run: bool
) -> None:
    if change == "bare":
        write_rows(tmp_path, image=None)
    if change == "several":
        write_rows(tmp_path, image=["0.png", "1.png"])
    if change == "size":
        write_rows(tmp_path, resolution=36)
    if change == "bucket":
        overrides.append("data.aspect_ratio_buckets=[48x32,48x36]")
    if change == "cut":
        (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:500])
    if change in ("text-to-image", "unused", "no picture"):
        overrides = ["model=tiny", *(word for word in overrides if not word.startswith("model"))]
    if change in ("unused", "no picture"):
        overrides.append("data.sources.prompts.image_key=null")
    if change == "unused":
        overrides.append("data.aspect_ratio_buckets=null")
    done = marble("train", *overrides, "run.dir=run", *(["--dry-run"] if dry_run else []))
    assert done.code == 2
    assert re.search(said, done.err), done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_pictures_to_draw_from_are_checked(
    marble: Marble, overrides: list[str], kontext: Path, tmp_path: Path
) -> None:
    model = [word for word in overrides if word.startswith(("~", "model"))]
    (tmp_path / "text.png").write_text("no picture")
    for target, pictures, said in (
        (["base", *model], [], "0 pictures for 2 prompts: .* starts from a picture"),
        (["base", *model], ["0.png"] * 3, "3 pictures for 2 prompts"),
        (["base", *model], ["0.png"] * 4, r"4 pictures for 2 prompts: .* or once per --prompt\."),
        (["base", *model], ["0.png", "text.png"], r"--image: .*text\.png is no picture"),
        (["base"], ["0.png"], r"--image .*0\.png: tiny starts from no picture"),
    ):
        words = [word for picture in pictures for word in ("--image", picture)]
        done = marble("generate", *target, "--prompt", "a", "--prompt", "b", *words)
        assert done.code == 2
        assert re.search(said, done.err), done.err
    done = marble("bench", "base", "--benchmark", "tiny", *model)
    assert done.code == 2
    assert "benchmarks have prompts alone" in " ".join(done.err.split())


def test_a_picture_is_scored_against_the_one_that_it_was_edited_from(
    marble: Marble, overrides: list[str], tmp_path: Path
) -> None:
    """The second picture is fitted to the first one's size."""
    Image.new("RGB", (60, 40), (100, 100, 100)).save(tmp_path / "one.png")
    Image.new("RGB", (30, 10), (90, 90, 90)).save(tmp_path / "before.png")
    words = ["rewards", "score", "kept", "--image", "one.png", "--prompt", "a"]
    done = marble(*words, "--condition", "before.png")
    assert (done.code, done.out) == (0, "kept: -10\n")
    done = marble(*words)
    assert done.code == 2
    assert "--condition FILE" in done.err
    done = marble("rewards", "check", "kept")
    assert done.code == 0, done.out
