"""A sweep is read by Hydra's grammar and split by its basic sweeper."""

import itertools

import pytest

from marble_cli.config.compose import choices, compose
from marble_cli.config.sweep import split_sweep
from marble_cli.errors import ConfigError


def values(*words: str) -> list[dict[str, object]]:
    return [cell.values for cell in split_sweep(words)[1]]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("balance.floor=0,0.1,0.20", [0, 0.1, 0.2]),
        ("balance.floor=choice(0,0.1)", [0, 0.1]),
        ("trainer.seed=range(0,3)", [0, 1, 2]),
        ("balance.floor=range(0,0.3,0.1)", [0.0, 0.1, 0.2]),
        ("trainer.seed=sort(3,1,2)", [1, 2, 3]),
        ("trainer.times_per_image=1,null", [1, None]),
        ("model.compile=true,false", [True, False]),
        ("balance=marble,mgda", ["marble", "mgda"]),
        (
            "rewards=[colorfulness],[colorfulness,compressibility]",
            [["colorfulness"], ["colorfulness", "compressibility"]],
        ),
        ("balance.priorities={colorfulness:2},{colorfulness:3}", [{"colorfulness": 2}, {"colorfulness": 3}]),
        ("model.revision=1.10,null,'a,b',x", ["1.10", None, "a,b", "x"]),
        ("trainer.seed=1,1", [1]),
    ],
)
def test_values_are_those_that_hydra_reads(written: str, read: list[object]) -> None:
    key = written.partition("=")[0]
    found = [cell[key] for cell in values(written)]
    assert found == read
    assert [type(value) for value in found] == [type(value) for value in read]


def test_a_glob_takes_the_choices_of_its_group_that_match() -> None:
    matching = [name for name in choices("balance") if name.startswith("m")]
    assert [cell["balance"] for cell in values("balance=glob(m*)")] == matching
    assert [cell["balance"] for cell in values("balance=glob(m*,exclude=mgda)")] == [
        name for name in matching if name != "mgda"
    ]


def test_cells_are_the_product_and_keep_the_other_overrides() -> None:
    words = ["preset=tiny", "balance.floor=0,0.1", "~rewards.ocr", "trainer.seed=range(0,3)"]
    fixed, cells = split_sweep(words)
    assert fixed == ["preset=tiny", "~rewards.ocr"]
    assert [tuple(cell.values.values()) for cell in cells] == list(itertools.product((0, 0.1), (0, 1, 2)))
    last = compose([*fixed, *cells[-1].overrides])
    assert (last.balance.floor, last.trainer.seed) == (0.1, 2)
    assert "ocr" not in last.rewards


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["balance.floor=0.10,1"], "balance.floor=0.1"),
        (["trainer.seed=0,1", "balance.floor=0.1,0.2"], "balance.floor=0.1,trainer.seed=0"),
        (["rewards=[a,b],[a]"], "rewards=a+b"),
        (["model.compile=false,true"], "model.compile=false"),
    ],
)
def test_a_cell_is_named_by_its_values(words: list[str], name: str) -> None:
    assert split_sweep(words)[1][0].name == name


def test_trained_and_watched_rewards_may_both_be_swept() -> None:
    words = ["rewards=[a],[b]", "+rewards@eval_rewards=[c],[d]"]
    assert [tuple(cell.values.items()) for cell in split_sweep(words)[1]] == [
        (("rewards", [trained]), ("rewards@eval_rewards", [watched])) for trained in "ab" for watched in "cd"
    ]


def test_values_that_no_folder_can_be_named_by_have_names_of_their_own() -> None:
    written = ["a/b", "a-b", "a b", "../x", "ü", "x" * 300, "x" * 299, "a\nb"]
    cells = split_sweep(["model.revision=" + ",".join(f"'{value}'" for value in written)])[1]
    assert [cell.values["model.revision"] for cell in cells] == written
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(written)
    assert all(name.isascii() and name.isprintable() and "/" not in name for name in names)
    assert max(map(len, names)) < 150
    assert names[1] == "model.revision=a-b"
    again = split_sweep(["model.revision='a/b',other"])[1]
    assert again[0].name == names[0], "a name does not depend on the other cells"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["balance.floor=0.1"], "no override gives several values"),
        (["trainer.seed=range(0,3"], "trainer.seed=range(0,3"),
        (["run.dir=a,b"], "every cell has a name and a folder of its own"),
        (["trainer.seed=1", "trainer.seed=1,2"], "trainer.seed is given twice"),
        (["trainer.seed=1,2", "trainer.seed=3,4"], "trainer.seed is given twice"),
        (["balance.floor=interval(0,1)"], "an interval has no list of values"),
        *(
            ([f"trainer.seed=range({bounds})"], f"trainer.seed=range({bounds}): this range has no values")
            for bounds in ("3,0", "0,0", "0,3,-1", "0,3,0", "0,1,0.0", "0,nan", "0,1,nan", "0,inf", "-inf,0")
        ),
        (["trainer.seed=glob(*)"], "glob chooses among the files of a group"),
        (["balance=glob(z*)"], "no choice of balance matches"),
        (["balance.floor=0,0.1", "trainer.steps=(3"], "trainer.steps=(3: expected a whole number"),
    ],
)
def test_what_has_no_cells_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        split_sweep(words)
    assert said in str(error.value)


def test_a_single_run_refuses_several_values_and_names_the_option() -> None:
    with pytest.raises(ConfigError, match="--multirun starts a run for each"):
        compose(["trainer.seed=1,2"])
    assert compose(["model.revision=1,2", "run.dir=x"]).model.revision == "1,2", "a text is taken as written"
