"""The card: metadata that the hub's client reads, and Markdown that renders to what the run recorded."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from marble_cli.config.compose import compose
from marble_cli.push.base_model import BaseModel, describe_base
from marble_cli.push.card import plain, write_card
from marble_cli.push.folder import write_folder
from marble_cli.push.loading import loading_code
from marble_cli.report.reading import read_run
from tests.report.page import Page

EVIL = "a | b</td><script>alert(1)</script> `x` *y* _z_ [l](http://e) ![i](j) \\ &amp; ~s~\n# head"


def rendered(text: str) -> Page:
    return Page(MarkdownIt("commonmark", {"xhtmlOut": False}).enable("table").render(text))


@pytest.fixture(scope="module")
def card(pushed: Path) -> ModelCard:
    return ModelCard.load(pushed / "README.md")


def test_metadata_is_what_the_hub_reads(card: ModelCard, pushed: Path) -> None:
    data = card.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "text-to-image"
    assert {"lora", "diffusers", "text-to-image", "marble", "sd3"} <= set(data["tags"])
    assert len(data["widget"]) == 6
    for entry in data["widget"]:
        assert (pushed / entry["output"]["url"]).is_file()
        assert isinstance(entry["text"], str)
    assert "base_model" not in data  # a folder of this machine is no published model
    assert "license" not in data


def test_page_has_the_figures_of_the_last_evaluation(card: ModelCard, trained: Path) -> None:
    page = rendered(card.text)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [row for row in rows if row["phase"] == "eval"]
    for name in ("colorfulness", "compressibility"):
        change, low, high = (last[f"reward/{name}/{end}"] for end in ("change", "change_low", "change_high"))
        said = "▲ rose" if low > 0 else "▼ fell" if high < 0 else "● undecided"
        cells = page.row(name, said)
        assert cells[2:] == [
            f"{change:+.3g} ({low:+.3g} … {high:+.3g})".replace("-", "−"),
            f"{first[f'reward/{name}/mean']:.4g}".replace("-", "−"),
            f"{last[f'reward/{name}/mean']:.4g}".replace("-", "−"),
            "trained",
        ]
        assert page.row(name, "trained")[1:] == ["trained", "1", f"{name} of marble-cli 0.1.0", "Apache-2.0"]
    assert f"{100 * last['eval/joint_improvement']:.0f} % of the held-out images" in page.words


def test_the_verdicts_are_described_as_they_are_made_and_the_page_ends_with_a_line(pushed: Path) -> None:
    text = (pushed / "README.md").read_text()
    assert "corrected for the number of rewards" in text
    assert "not corrected" not in text
    assert " 16 pixels unless a row names its size, " in text
    assert text.endswith("listed above.\n")


@pytest.mark.parametrize(
    ("balance", "words"),
    [
        ("upgrad", "the balance `upgrad` ([arXiv 2406.16232](https://arxiv.org/abs/2406.16232)) on"),
        ("weighted_sum", "the balance `weighted_sum` on DiffusionNFT"),
    ],
)
def test_the_card_names_the_balance_that_trained(trained: Path, balance: str, words: str) -> None:
    config = compose([f"balance={balance}"], str(trained / "config.yaml"))
    card = write_card("me/x", config, describe_base(config.model), "", 2, read_run(trained, "first"), [])
    assert words in card
    assert "2605.06507" not in card


def test_every_link_of_the_page_leads_somewhere(card: ModelCard, pushed: Path) -> None:
    page = rendered(card.text)
    targets = [image.attributes["src"] for image in page.all("img")]
    assert len(targets) == 12
    targets += [link.attributes["href"] for link in page.all("a")]
    local = {str(target) for target in targets if not str(target).startswith("https://")}
    assert {"report.html", "config.yaml"} <= local
    assert all((pushed / target).is_file() for target in local)
    assert [heading.text for heading in page.all("h2")] == [
        "Load the LoRA", "What training changed", "Pictures", "Rewards", "How it was trained", "License",
    ]  # fmt: skip


def test_text_in_a_cell_is_shown_as_it_is() -> None:
    page = rendered(f"| a | b |\n|---|---|\n| {plain(EVIL)} | c |\n")
    assert [element.text for element in page.all("td")] == [" ".join(EVIL.split()), "c"]
    assert {element.tag for element in page.elements} == {"table", "thead", "tbody", "tr", "th", "td"}


def test_code_of_any_prompt_stays_in_its_block_and_quotes_the_prompt() -> None:
    config = compose(["~preset", "run.dir=unused"])
    prompt = EVIL + '```\n</code>"'
    base = describe_base(config.model)
    code = loading_code(config, "SD3", base, "me/x", prompt)
    names: dict[str, Any] = {}
    line = code.splitlines()[-1].removeprefix("image = pipeline(").partition(", num_inference_steps")[0]
    exec(f"prompt = {line}", names)
    assert names["prompt"] == prompt
    page = rendered(f"```python\n{code}\n```\n\nafter")
    assert [element.tag for element in page.elements] == ["pre", "code", "p"]


def test_code_for_a_model_of_the_hub_is_three_lines() -> None:
    config = compose(
        ["~preset", "model=flux", "data.root=.", "run.dir=unused", "model.revision=abc", "rollout.steps=20"]
    )
    base = BaseModel("black-forest-labs/FLUX.1-dev", "FLUX.1-dev")
    code = loading_code(config, "Flux", base, "me/x", "a cup")
    assert code.splitlines() == [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        'pipeline = DiffusionPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", revision="abc", '
        "torch_dtype=torch.bfloat16)",
        'pipeline.load_lora_weights("me/x")',
        'image = pipeline("a cup", num_inference_steps=20, height=512, width=512, true_cfg_scale=1.0, '
        "guidance_scale=3.5, max_sequence_length=512).images[0]",
    ]


def test_code_for_a_model_that_edits_names_a_picture_of_the_runs_size() -> None:
    config = compose(["~preset", "model=flux_kontext", "data.root=.", "run.dir=unused", "rollout.steps=20"])
    base = BaseModel("black-forest-labs/FLUX.1-Kontext-dev", "FLUX.1-Kontext-dev")
    code = loading_code(config, "FluxKontext", base, "me/x", "make it blue")
    assert "from diffusers.utils import load_image" in code.splitlines()
    assert code.splitlines()[-1] == (
        'image = pipeline(prompt="make it blue", image=load_image("picture.png"), num_inference_steps=20, '
        "height=512, width=512, true_cfg_scale=1.0, guidance_scale=2.5, max_area=262144, _auto_resize=False, "
        "max_sequence_length=512).images[0]"
    )


def test_tags_name_what_the_model_makes(trained: Path) -> None:
    run = read_run(trained, "r")
    base = BaseModel("me/base", "base")
    for model, family, task in (
        ("flux_kontext", "FluxKontext", "image-to-image"),
        ("wan", "Wan", "text-to-video"),
    ):
        config = compose(["~preset", f"model={model}", "data.root=.", "run.dir=unused"])
        card = ModelCard(write_card("me/x", config, base, family, 1, run, [])).data
        assert card.pipeline_tag == task
        assert task in card.tags


def test_code_for_a_model_of_videos_writes_one() -> None:
    config = compose(["~preset", "model=wan", "data.root=.", "run.dir=unused", "rollout.steps=20"])
    base = BaseModel("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan2.1-T2V-1.3B-Diffusers")
    code = loading_code(config, "Wan", base, "me/x", "a boat")
    assert "from diffusers.utils import export_to_video" in code.splitlines()
    assert code.splitlines()[-2:] == [
        'frames = pipeline("a boat", num_inference_steps=20, height=480, width=832, num_frames=81, '
        "guidance_scale=1.0, max_sequence_length=512).frames[0]",
        'export_to_video(frames, "video.mp4", fps=24 if pipeline.vae.config.patch_size else 16)',
    ]


STATED = "---\nlicense: other\nlicense_name: my-terms\nlicense_link: LICENSE.md\n---\n# A model\n"
LINK = "https://huggingface.co/owner/model/blob/main/LICENSE.md"


def test_license_and_id_come_from_the_card_of_the_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder, in a folder of the hub's cache, and by hub id from that cache."""
    model = compose(["~preset", "run.dir=unused"]).model
    commit = "0" * 40
    folder = tmp_path / "models--owner--model" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "README.md").write_text(STATED)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(commit)
    (tmp_path / "own").mkdir()
    for name in ("model_index.json", "README.md"):
        (tmp_path / "own" / name).write_text((folder / name).read_text())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    terms = {"license": "other", "license_name": "my-terms"}
    for path, expected in (
        (str(tmp_path / "own"), BaseModel(None, "own", terms)),
        (str(folder), BaseModel("owner/model", "owner/model", {**terms, "license_link": LINK})),
        ("owner/model", BaseModel("owner/model", "owner/model", {**terms, "license_link": LINK})),
        ("owner/unknown", BaseModel("owner/unknown", "owner/unknown", {})),
        (str(tmp_path / "moved"), BaseModel(None, "moved", {})),
    ):
        model.path = path
        assert describe_base(model) == expected
    (tmp_path / "own" / "README.md").write_text("---\n: [\n---\n")
    model.path = str(tmp_path / "own")
    assert describe_base(model).license == {}


def test_card_states_base_model_and_license(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = {"license": "other", "license_name": "t", "license_link": LINK}
    base = BaseModel("owner/model", "owner/model", terms)
    monkeypatch.setattr("marble_cli.push.folder.describe_base", lambda model: base)
    card = ModelCard.load(write_folder(str(trained), "me/x", tmp_path) / "README.md")
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("owner/model", "adapter")
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "t", LINK)
    assert LINK in [link.attributes["href"] for link in rendered(card.text).all("a")]
