"""Protocols: every file composes and is pinned, and the name admits what an override changed."""

import re
from importlib.resources import files
from pathlib import Path

import hydra
import pytest
from typer.main import get_command

from marble_cli.benchmark.bench import merge_rewards
from marble_cli.cli.app import app
from marble_cli.config.benchmark import benchmarks, compose_protocols
from marble_cli.errors import ConfigError

CONF = Path(str(files("marble_cli"))).parent / "conf" / "benchmark"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml"))


def test_every_file_is_a_benchmark() -> None:
    assert benchmarks() == NAMES
    assert {"tiny", "geneval", "geneval2", "ocr", "pickscore", "drawbench", "dpg", "hpdv2"} < {*NAMES}


def test_the_help_names_every_benchmark() -> None:
    (option,) = [o for o in get_command(app).commands["bench"].params if o.name == "benchmark"]  # type: ignore[attr-defined]
    assert sorted(re.findall(r"\w+", option.help.removeprefix("Any of "))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_composes_and_is_pinned(name: str) -> None:
    (protocol,) = compose_protocols([name])
    source = protocol.config.source
    assert protocol.name == name
    assert source.files
    assert source.sha256.keys() <= source.files.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in source.sha256.values())
    if source.root != "tiny":
        assert (source.hub is None) != (source.github is None)
        assert re.fullmatch("[0-9a-f]{40}", source.revision or "")
    assert "arXiv" in (CONF / f"{name}.yaml").read_text() or name == "tiny"


def test_geneval_is_strict_with_four_images() -> None:
    (protocol,) = compose_protocols(["geneval"])
    own = protocol.to_json()
    assert (own["images_per_prompt"], own["group"], own["average"]) == (4, "tag", "groups")
    assert own["rewards"]["geneval"]["options"]["mode"] == "strict"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "tiny"),
        (["benchmark.steps=4"], "tiny (changed: steps=4)"),
        (["benchmark.steps=8", "benchmark.solver=euler"], "tiny"),
        (["benchmark.solver=dpm2", "benchmark.seed=3"], "tiny (changed: solver=dpm2, seed=3)"),
        (["benchmark.rewards.ocr.fold=lookalike"], "tiny (changed: rewards.ocr.fold=lookalike)"),
        (["benchmark.source.files.text=a.txt"], "tiny (changed: source.files.text=a.txt)"),
        (
            ["benchmark.batch_size=4", "benchmark.source.root=/data", "benchmark.rewards.ocr.timeout=9"],
            "tiny",
        ),
        (["benchmark.rewards.ocr.url=http://127.0.0.1:1"], "tiny"),
        (["~benchmark.rewards.ocr"], "tiny (changed: ~rewards.ocr)"),
        (
            ["+benchmark.rewards.mine={plugin: colorfulness}"],
            "tiny (changed: +rewards.mine=colorfulness)",
        ),
    ],
)
def test_the_name_admits_every_change_of_the_scores(overrides: list[str], name: str) -> None:
    assert [protocol.name for protocol in compose_protocols(["tiny"], overrides)] == [name]


def test_a_change_concerns_the_benchmarks_that_have_the_reward() -> None:
    tiny, geneval = compose_protocols(
        ["tiny", "geneval"], ["benchmark.rewards.geneval.mode=soft", "benchmark.prompts=2"]
    )
    assert tiny.name == "tiny (changed: prompts=2)"
    assert geneval.name == "geneval (changed: prompts=2, rewards.geneval.mode=soft)"


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("genevl", "benchmark.steps=4", "did you mean 'geneval'"),
        ("tiny", "benchmark.setps=4", "did you mean 'benchmark.steps'"),
        ("tiny", "benchmark.steps=0", "benchmark.steps=0: expected at least 1"),
        ("tiny", "benchmark.steps=many", "benchmark.steps"),
        ("tiny", "benchmark=geneval", "choose benchmarks with --benchmark"),
        ("tiny", "benchmark.rewards.geneval.mode=soft", "no benchmark here has that reward"),
        ("tiny", "benchmark.rewards.ocr.plugin=orc", "no such reward is installed; did you mean 'ocr'"),
        ("tiny", "~benchmark.rewards.orc", "no benchmark here has that reward"),
        ("tiny", "benchmark.average=tags", "average"),
        ("tiny", "benchmark.rewards=3", "benchmark.rewards=3: expected rewards by name"),
    ],
)
def test_a_wrong_protocol_is_refused(name: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        compose_protocols([name], [override])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["benchmark.steps=4", "+benchmark.rewards.more={plugin: ocr}", "~benchmark.rewards.clipscore"],
        ["benchmark.steps=many"],
        ["benchmark.seed.x=1"],
    ],
)
def test_files_that_tests_compose_once_give_what_hydra_gives(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    """As tests/compositions.py shares them; with the same words if they are wrong."""

    def outcome() -> str:
        try:
            return str(compose_protocols(["tiny", "drawbench"], overrides))
        except ConfigError as error:
            return str(error)

    shared = outcome()
    monkeypatch.setattr("marble_cli.config.benchmark.hydra_compose", hydra.compose)
    assert outcome() == shared


def test_secrets_and_places_are_not_recorded() -> None:
    (protocol,) = compose_protocols(
        ["geneval2"],
        [
            "benchmark.rewards.softtifa.base_url=http://me:hunter2@host/v1",
            "benchmark.rewards.softtifa.extra_body={api_key: hunter2}",
            "benchmark.source.root=/home/me",
        ],
    )
    assert protocol.name == "geneval2 (changed: rewards.softtifa.extra_body.api_key=(a secret))"
    written = str(protocol.to_json())
    assert "hunter2" not in written
    assert "/home/me" not in written
    assert protocol.rewards()["softtifa"].options["extra_body"] == {"api_key": "hunter2"}


def test_the_frames_that_a_reward_is_asked_about_are_in_the_name() -> None:
    (protocol,) = compose_protocols(["tiny"], ["benchmark.rewards.clipscore.frames=first"])
    assert protocol.name == "tiny (changed: rewards.clipscore.frames=first)"
    assert protocol.to_json()["rewards"]["clipscore"]["frames"] == "first"


def test_paths_of_weights_are_recorded_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (protocol,) = compose_protocols(["hpdv2"])
    assert protocol.to_json()["rewards"]["hpsv2"]["options"]["model"] == "./models/hpsv2"
    assert protocol.rewards()["hpsv2"].options["model"] == str(tmp_path / "models" / "hpsv2")


def test_equal_rewards_are_built_once() -> None:
    protocols = compose_protocols(["pickscore", "drawbench", "tiny"])
    merged, names = merge_rewards(protocols)
    assert names[0]["pickscore"] == names[1]["pickscore"] == "pickscore"
    assert (names[1]["clipscore"], names[2]["clipscore"]) == ("clipscore", "tiny-clipscore")
    assert merged["tiny-clipscore"].options == {"model": "tiny"}
    assert len(merged) == 1 + 4 + 5
