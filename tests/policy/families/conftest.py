"""Share the cases of the battery: each tiny pipeline is saved and loaded once per process."""

import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

from marble_cli.config.schema import RunConfig
from marble_cli.policy.families.qwen_image_edit import QwenImageEdit, QwenImageEditPlus
from marble_cli.policy.load import load_policy
from tests.policy.families import differences
from tests.policy.families.cases import Case, load_plain
from tests.policy.families.edits import Drawn
from tests.policy.families.flux2 import take_first_outputs
from tests.policy.families.pipelines import EDITS, SEVERAL, TINY, configured

# Of the cases' runs: two pictures a step, and a checkpoint of each, with averages that follow fast.
RUN = (
    *("rollout.groups=1", "rollout.group_size=2"),
    *("trainer.checkpoint_every=1", "trainer.ema.decay=0.1"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--differences", type=Path, help="write the largest difference of each proof here")


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--differences", default=None)
    if file is not None:
        differences.write(file)


@pytest.fixture(scope="session")
def small_pictures() -> Iterator[None]:
    """Qwen-Image-Edit's pipelines and ours scale pictures to 64 x 64 pixels instead of to a million.

    Those of FLUX.2 take pictures from 32 pixels on a side on, and not from 64, and the outputs of the first
    layers of their text encoders.
    """

    def smaller(area: int, ratio: float) -> Any:
        return calculate_dimensions(area // 256, ratio)

    with pytest.MonkeyPatch.context() as change:
        change.setattr(pipeline_qwenimage_edit, "calculate_dimensions", smaller)
        change.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
        change.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 64 * 64)
        change.setattr(QwenImageEdit, "latent_area", 64 * 64)
        small = partial(Flux2ImageProcessor.check_image_input, min_side_length=32)
        change.setattr(Flux2ImageProcessor, "check_image_input", staticmethod(small))
        take_first_outputs(change)
        for family in (QwenImageEdit, QwenImageEditPlus):
            change.setattr(family, "seen_area", 64 * 64)
        yield


@pytest.fixture(scope="session")
def edits_folder(prompts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompts of other tests: below `one` each with a picture, and below `several` with one to three."""
    root = tmp_path_factory.mktemp("edits")
    for file in prompts_folder.glob("*/*.jsonl"):
        for folder in (root / "one", root / "several"):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            (folder / file.parent.name).mkdir(exist_ok=True, parents=True)
            for number, row in enumerate(rows):
                pictures = [Drawn(row["prompt"], place) for place in range(1 + number % 3)]
                for picture in pictures:
                    picture.image(*picture.size).save(folder / f"{picture.digest}.png")
                names = [f"{picture.digest}.png" for picture in pictures]
                row["image"] = names if folder.name == "several" else names[0]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / file.parent.name / file.name).write_text(lines)
    return root


@pytest.fixture(scope="session", params=list(TINY))
def case(
    request: pytest.FixtureRequest,
    small_pictures: None,
    edits_folder: Path,
    tiny_folder: Callable[[str], Path],
    run_config: Callable[..., RunConfig],
    randomise: Callable[..., None],
) -> Case:
    """One family's case; tests must not change its policies and its pipeline."""
    return make_case(request.param, edits_folder, tiny_folder, run_config, randomise)


@cache
def make_case(
    name: str,
    edits_folder: Path,
    tiny_folder: Callable[[str], Path],
    run_config: Callable[..., RunConfig],
    randomise: Callable[..., None],
) -> Case:
    """Make a case once per process; pytest forgets a fixture with parameters after every file."""
    tiny, folder = TINY[name], tiny_folder(name)
    overrides = (
        *RUN,
        *(
            (f"data.root={edits_folder / ('several' if name in SEVERAL else 'one')}",)
            if name in EDITS
            else ()
        ),
        f"model={tiny.choice}",
        f"model.path={folder}",
        f"model.resolution={tiny.resolution}",
        f"model.max_sequence_length={tiny.max_sequence_length}",
        f"model.lora.target_modules=[{','.join(configured(tiny.choice).lora.target_modules)}]",
        "model.precision=fp32",
        "model.embedding_cache=null",
        *tiny.overrides,
    )
    model = run_config(*overrides).model
    policy = load_policy(model, seed=0)
    randomise(policy)
    return Case(name, tiny, overrides, model, load_plain(folder), policy, randomise)
