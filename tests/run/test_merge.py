"""`marble merge`: from runs to a run that evaluates, exports and resumes."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.checkpoint.merge import MergeMethod
from marble_cli.cli.merge import split_words
from marble_cli.config.compose import compose, load_resolved
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.evaluate.target import resolve_target
from marble_cli.push.folder import write_folder
from marble_cli.run.merge import merge
from marble_cli.run.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, run_config: Callable[..., RunConfig]) -> list[Path]:
    """Two short runs of other ranks and seeds; the second starts from the first."""
    folders = []
    for seed, rank in ((0, 2), (1, 3)):
        folder = tmp_path_factory.mktemp(f"seed-{seed}")
        start = f"model.lora.init={folders[0]}" if folders else "model.lora.init=null"
        config = run_config(
            f"run.dir={folder}", f"trainer.seed={seed}", f"model.lora.rank={rank}", "trainer.steps=1", start
        )
        assert train(config, resume="never") == 0
        folders.append(folder)
    return folders


def test_a_merged_run_is_judged_exported_and_resumed(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "both"
    checkpoint = merge([str(run) for run in runs], output, [0.5, 0.5], MergeMethod.concat, 0.5)
    assert checkpoint == output / "checkpoints" / "step-00000000"
    report = evaluate(str(output), ["base"], ["trainer.eval_prompts=2"], None)
    assert report.target == "both/step-00000000"
    assert all(result.n for result in report.rewards)
    assert export(str(output), tmp_path / "lora").is_file()
    config = compose(["trainer.steps=1"], str(output / "config.yaml"))
    assert (config.model.lora.rank, config.run.dir) == (5, str(output))
    assert train(config, resume="auto") == 0
    _, trained, _ = store.load(output / "checkpoints" / "step-00000001")
    _, merged, _ = store.load(checkpoint)
    assert any(not trained[key].equal(merged[key]) for key in merged)
    monkeypatch.setattr("marble_cli.push.folder.render", lambda _: "")  # two seconds, and not looked at here
    card = (write_folder(str(output), "me/both", tmp_path / "pushed") / "README.md").read_text()
    assert "Trained for 1 step by marble" in card
    assert f"with these weights:\n\n- 0.5 for {runs[0].name}/step-00000001\n- 0.5 for {runs[1].name}/" in card


def test_a_weight_of_one_is_the_run_itself(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marble_cli.push.folder.render", lambda _: "")  # two seconds, and not looked at here
    merge([str(run) for run in runs], tmp_path / "one", [1.0, 1e-30], MergeMethod.concat, 0.5)
    card = (write_folder(str(tmp_path / "one"), "me/one", tmp_path / "pushed") / "README.md").read_text()
    assert "merged by marble" in card
    assert not any(claim in card for claim in ("fine-tuned", "Trained for"))
    assert f"- 1 for {runs[0].name}/step-00000001\n- 1e-30 for {runs[1].name}/step-00000001\n" in card
    _, _, whole = store.load(store.resolve(str(tmp_path / "one")))
    state, _, average = store.load(store.resolve(str(runs[0])))
    assert state.scale is not None
    for key in average:
        if "lora_A" in key:
            up = key.replace("lora_A", "lora_B")
            expected = state.scale * average[up].double() @ average[key].double()
            torch.testing.assert_close(
                whole[up].double() @ whole[key].double(), expected, rtol=1e-6, atol=1e-9
            )


def test_a_merged_run_does_not_say_that_it_starts_from_another(runs: list[Path], tmp_path: Path) -> None:
    merge([str(run) for run in reversed(runs)], tmp_path / "both", None, MergeMethod.concat, 0.5)
    assert load_resolved(runs[1] / "config.yaml").model.lora.init == str(runs[0])
    assert load_resolved(tmp_path / "both" / "config.yaml").model.lora.init is None


def test_targets_that_cannot_be_merged_are_refused(runs: list[Path], tmp_path: Path) -> None:
    first, second = map(str, runs)
    output = tmp_path / "x"
    with pytest.raises(RequestError, match="two or more"):
        merge([first], output, None, MergeMethod.concat, 0.5)
    with pytest.raises(RequestError, match="merge base: no LoRA. Expected a run"):
        merge([first, "base"], output, None, MergeMethod.concat, 0.5)
    for again in (first, f"{first}/checkpoints/step-00000001"):
        with pytest.raises(RequestError, match="named twice"):
            merge([first, again], output, None, MergeMethod.concat, 0.5)
    with pytest.raises(CheckpointError, match="nowhere"):
        merge([first, "nowhere"], output, None, MergeMethod.concat, 0.5)
    with pytest.raises(RequestError, match="--weights : expected one finite number other than 0 per LoRA"):
        merge([first, second], output, [], MergeMethod.concat, 0.5)
    with pytest.raises(RequestError, match="exists and is not overwritten"):
        merge([first, second], runs[0], None, MergeMethod.concat, 0.5)
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "weights", "expected"),
    [
        (["a", "b", "out"], None, (["a", "b"], "out", None)),
        (["a", "b", "out"], "0.6,0.4", (["a", "b"], "out", [0.6, 0.4])),
        (["a", "b", "out", "0.4"], "0.6", (["a", "b"], "out", [0.6, 0.4])),
        (["0.4", "a", "b", "out"], "0.6", (["a", "b"], "out", [0.6, 0.4])),
        (["a", "b", "c", "out", "0.3", "-1"], "0.6", (["a", "b", "c"], "out", [0.6, 0.3, -1.0])),
        (["a", "b", "3"], "0.6,0.4", (["a", "b"], "3", [0.6, 0.4])),
    ],
)
def test_weights_may_have_commas_or_spaces(
    words: list[str], weights: str | None, expected: tuple[list[str], str, list[float] | None]
) -> None:
    assert split_words(words, weights) == expected


@pytest.mark.parametrize(("words", "weights"), [(["out"], None), (["a", "b", "out"], "half"), ([], "1")])
def test_words_without_an_output_or_a_number_are_refused(words: list[str], weights: str | None) -> None:
    with pytest.raises(RequestError, match="expected"):
        split_words(words, weights)


def test_runs_of_one_name_in_two_folders_are_both_merged(runs: list[Path], tmp_path: Path) -> None:
    """Their labels are equal; their ranks 2 and 3 add up."""
    twins = []
    for run, parent in zip(runs, ("one", "two"), strict=True):
        twins.append(shutil.copytree(run, tmp_path / parent / "demo"))
    merge([str(twin) for twin in twins], tmp_path / "both", None, MergeMethod.concat, 0.5)
    assert compose([], str(tmp_path / "both" / "config.yaml")).model.lora.rank == 5


def test_a_checkpoint_without_the_alpha_of_its_lora_is_refused(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "marble_cli.run.merge.resolve_target",
        lambda spec: replace(resolve_target(spec), provenance={"train": "lora"}),
    )
    with pytest.raises(RequestError, match="does not state the rank"):
        merge([str(run) for run in runs], tmp_path / "x", None, MergeMethod.concat, 0.5)
