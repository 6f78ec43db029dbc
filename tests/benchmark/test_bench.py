"""`marble bench` on a small random model: targets, resumption, processes, and what bench.json is good for."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from marble_cli.benchmark import draw
from marble_cli.benchmark.bench import bench, digest
from marble_cli.benchmark.record import Record
from marble_cli.benchmark.report import BenchReport
from marble_cli.checkpoint.export import export
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, ConfigError, RequestError, RewardError
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.evaluate.score import Evaluator
from marble_cli.evaluate.target import Models, resolve_target
from tests.random_runs import write_random_run

REWARDS = ("colorfulness", "compressibility")
# 6 prompts x 2 images, in units of 2 prompts: 3 units.
SMALL = [
    *("benchmark.resolution=16", "benchmark.steps=3", "benchmark.batch_size=4"),
    *(f"~benchmark.rewards.{name}" for name in ("clipscore", "ocr", "objects")),
]


@pytest.fixture(scope="module")
def small(prompts_folder: Path) -> list[str]:
    """Overrides that make `tiny` fit the random pipeline."""
    return [*SMALL, f"benchmark.source.root={prompts_folder}"]


@pytest.fixture(scope="module")
def foreign(base_overrides: list[str]) -> list[str]:
    """Overrides of the model, for commands without a run."""
    return [word for word in base_overrides if word.startswith(("model", "rollout", "logging"))]


@pytest.fixture(scope="module")
def run(
    run_config: Callable[..., RunConfig],
    randomise: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run with a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    write_random_run(run_config(f"run.dir={folder}"), randomise)
    return folder


def call(targets: list[object], overrides: list[str], output: Path) -> BenchReport:
    report = bench([str(target) for target in targets], ["tiny"], overrides, output)
    assert report is not None
    return report


def without_clocks(file: Path) -> str:
    tree = json.loads(file.read_text())
    for result in tree["results"]:
        assert result.pop("seconds") > 0
    return json.dumps(tree)


def scores(report: BenchReport, place: int) -> torch.Tensor:
    """The scores [rewards, prompts, images] of the target at a place."""
    return torch.tensor([report.results[place].scores[name] for name in REWARDS])


def test_a_run_scores_as_its_exported_loras_and_as_marble_eval(
    run: Path, small: list[str], tmp_path: Path
) -> None:
    exported = [export(str(run), tmp_path / form.value, form) for form in ExportFormat]
    report = call([run, *exported, "base"], small, tmp_path)
    own, *same, base = (scores(report, place) for place in range(5))
    assert own.shape == (2, 6, 2)
    for other in same:  # up to pixels that rounding puts on either side of a level
        assert torch.allclose(other, own, rtol=0, atol=1e-2)
    assert (base - own).abs().max() > 1
    drawn = ("steps=3", "solver=euler", "times=euler", "images_per_prompt=2", "seed=0", "guidance_scale=1")
    judged = evaluate(str(run), [], [f"evaluation.{word}" for word in drawn], None)
    means = {reward.name: reward.mean for reward in judged.rewards}
    result = report.results[0]
    assert {name: score.score for name, score in result.rewards.items()} == pytest.approx(means, abs=1e-6)


def test_runs_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / run.name)
    specs = (run, tmp_path / run.name, run, "base")
    models = Models([], [resolve_target(str(spec)) for spec in specs])
    one, other, again, base = (target.label for target in models.targets)
    assert one == again == f"{run.parent.name}/own/step-00000001"
    assert (other, base) == (f"{tmp_path.name}/own/step-00000001", "base")


def test_a_lora_of_plain_peft_is_a_target(
    pipeline_folder: Path, foreign: list[str], small: list[str], tmp_path: Path
) -> None:
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))
    transformer = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, **absent).transformer
    model = peft.get_peft_model(transformer, peft.LoraConfig(r=3, lora_alpha=2, target_modules=["to_q"]))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(tmp_path / "lora")
    report = call(["base", tmp_path / "lora"], [*foreign, *small], tmp_path)
    assert (scores(report, 0) - scores(report, 1)).abs().max() > 1e-3
    assert report.results[0].target["weights"] is None
    assert len(report.results[1].target["weights"]) == 64


@pytest.fixture(scope="module")
def whole(run: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bench of the run and its base model."""
    folder = tmp_path_factory.mktemp("whole")
    call([run, "base"], small, folder)
    return folder


@pytest.fixture(scope="module")
def alone(foreign: list[str], small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bench of a base model without a run."""
    folder = tmp_path_factory.mktemp("alone")
    call(["base"], [*foreign, *small], folder)
    return folder


class Killed(BaseException):
    """As a kill: nothing of the program handles it."""


def test_a_killed_bench_goes_on_and_ends_with_the_same_file(
    run: Path, small: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[list[int]]()
    plain_draw, plain_add = Evaluator.draw, Record.add

    def counting(self: Evaluator, places: Any, *rest: Any) -> Any:
        drawn.append(list(places))
        return plain_draw(self, places, *rest)

    def killed(self: Record, file: Any, rows: Any) -> None:
        plain_add(self, file, rows)
        if len(drawn) == 5:  # the second unit of the second target is being drawn
            file.append('{"first": 2, "sco')
            raise Killed

    monkeypatch.setattr(Evaluator, "draw", counting)
    with monkeypatch.context() as patch:
        patch.setattr(Record, "add", killed)
        with pytest.raises(Killed):
            call([run, "base"], small, tmp_path / "cut")
    assert not (tmp_path / "cut" / "bench.json").exists()
    assert drawn == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    drawn.clear()
    call([run, "base"], small, tmp_path / "cut")
    assert drawn == [[2, 3], [4, 5]]
    assert without_clocks(tmp_path / "cut" / "bench.json") == without_clocks(whole / "bench.json")
    drawn.clear()
    finished = (tmp_path / "cut" / "bench.json").read_bytes()
    call([run, "base"], small, tmp_path / "cut")
    assert (drawn, (tmp_path / "cut" / "bench.json").read_bytes()) == ([], finished)


def test_everything_can_be_computed_from_the_file_alone(run: Path, small: list[str], tmp_path: Path) -> None:
    call([run], [*small, "benchmark.average=groups", "benchmark.unit=100"], tmp_path)
    tree = json.loads((tmp_path / "bench.json").read_text())
    (protocol,), (result,) = tree["benchmarks"], tree["results"]
    assert protocol["name"] == result["benchmark"]
    assert "average=groups" in protocol["name"]
    assert protocol["source"]["read_sha256"].keys() == {"general", "text", "compositional"}
    assert {"torch", "diffusers", "marble-cli"} <= tree["versions"].keys()
    assert len(protocol["read"]) == 6
    for reward in result["rewards"].values():
        means = dict[str, list[float]]()
        for row, images in zip(protocol["read"], reward["scores"], strict=True):
            means.setdefault(row["group"], []).extend(images)
        by_group = [100 * math.fsum(values) / len(values) for values in means.values()]
        assert reward["score"] == pytest.approx(math.fsum(by_group) / 3)
        assert reward["interval"][0] <= reward["score"] <= reward["interval"][1]
        assert reward["n"] == 12


def test_the_documented_program_recomputes_every_score(
    run: Path,
    small: list[str],
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/benchmark.md").read_text(encoding="utf-8")
    program = page.partition("```python\n")[2].partition("```")[0]
    call([run, "base"], [*small, "benchmark.average=groups"], tmp_path)
    for folder, average in ((tmp_path, "groups"), (whole, "images")):
        assert json.loads((folder / "bench.json").read_text())["benchmarks"][0]["average"] == average
        capsys.readouterr()
        with open(folder / "bench.json") as file:
            exec(program.replace('open("bench/bench.json")', "file"), {"file": file})
        pairs = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()]
        assert len(pairs) == 4
        assert all(float(one) == pytest.approx(float(other), rel=1e-12) for one, other in pairs)


def test_nothing_in_the_file_names_this_machine(run: Path, whole: Path, pipeline_folder: Path) -> None:
    text = (whole / "bench.json").read_text()
    assert str(pipeline_folder.parent) not in text
    assert str(run.parent) not in text


def test_what_decides_the_scores_decides_the_file(
    foreign: list[str], small: list[str], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another protocol or model is drawn anew, and the first one's scores stay."""
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    for more in ("benchmark.seed=1", "rollout.cfg_truncation=0.9", "model.max_sequence_length=8"):
        call(["base"], [*foreign, *small, "benchmark.prompts=1", more], tmp_path)
    assert len(list((tmp_path / "scores").iterdir())) == 4
    monkeypatch.setattr(Evaluator, "draw", None)
    call(["base"], [*foreign, *small, "model.embedding_cache=null"], tmp_path)


@pytest.mark.parametrize(
    "line", ["[1]", "{}", '{"first": 0}', '{"first": 0, "scores": {}, "failed": {}, "seconds": 1.0}']
)
def test_a_damaged_record_is_refused(line: str, tmp_path: Path) -> None:
    key = {"benchmark": {"rewards": {"ocr": {}}}}
    path = Record(tmp_path, "tiny", key).path
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(RequestError, match="is not what `marble bench` writes. Delete it"):
        Record(tmp_path, "tiny", key)


@pytest.mark.parametrize("complete", [False, True])
def test_a_base_model_that_changed_meanwhile_is_refused(
    foreign: list[str], small: list[str], alone: Path, tmp_path: Path, complete: bool
) -> None:
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "scores").iterdir()
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join([json.dumps({"weights": "0" * 64}), *lines[1 : None if complete else -1]]) + "\n"
    )
    with pytest.raises(CheckpointError, match="the base model of base has changed since"):
        call(["base"], [*foreign, *small], tmp_path)


def test_a_resolution_that_does_not_fit_is_named_by_the_key_of_the_protocol(
    foreign: list[str], small: list[str], tmp_path: Path
) -> None:
    words = [word for word in small if "resolution" not in word]
    with pytest.raises(RequestError, match="benchmark tiny: benchmark.resolution=17: expected a multiple"):
        call(["base"], [*foreign, *words, "benchmark.resolution=17"], tmp_path)


def test_failed_images_are_tried_again_and_too_many_end_the_bench(
    run: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = draw.Draw._rows

    def failing(self: Any, place: int, *rest: Any) -> Any:
        rows = plain(self, place, *rest)
        if place == 2:
            rows.failed["colorfulness"], rows.scores["colorfulness"][0] = 2, [None, None]
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(draw.Draw, "_rows", failing)
        report = call([run], small, tmp_path)
        assert (report.results[0].failed["colorfulness"], report.results[0].rewards["colorfulness"].n) == (
            2,
            10,
        )
        strict = [*small, "benchmark.rewards.colorfulness.max_failed=0.1"]
        with pytest.raises(RewardError, match="failed on 2 of 12 images, more than benchmark.rewards.c"):
            call([run], strict, tmp_path)
    report = call([run], strict, tmp_path)  # old failures do not end it again
    assert (report.results[0].failed["colorfulness"], report.results[0].rewards["colorfulness"].n) == (0, 12)


@pytest.mark.parametrize("word", ["evaluation.steps=3", "~rewards.ocr", "data.root=x", "+eval_rewards.a={}"])
def test_overrides_that_a_protocol_makes_idle_are_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a benchmark's own protocol decides this"):
        bench(["base"], ["tiny"], [word], tmp_path)


def test_a_digest_knows_values_names_and_types() -> None:
    one = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert digest(one) == digest({"b": torch.zeros(2), "a": torch.ones(2)})
    others = [{"a": torch.ones(2)}, {"a": torch.ones(2), "c": torch.zeros(2)}, {**one, "b": torch.ones(2)}]
    others.append({**one, "b": torch.zeros(2, dtype=torch.float64)})
    assert len({digest(other) for other in (one, *others)}) == 5
