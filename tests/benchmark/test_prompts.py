"""The prompts of every published benchmark, in files of its format: what is read, hashed and kept."""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from marble_cli.benchmark.prompts import PromptSet, read_prompts
from marble_cli.config.benchmark import compose_protocols
from marble_cli.errors import DataError

GENEVAL = {"tag": "counting", "include": [{"class": "bench", "count": 2}], "prompt": "a photo of two benches"}
GENEVAL2 = {
    "prompt": "four white bicycles",
    "atom_count": 3,
    "vqa_list": [["How many bicycles are in the image?", "four"], ["Are the bicycles white?", "Yes"]],
    "skills": ["count", "attribute"],
}
DPG = (
    ("item_id", "text", "keywords", "proposition_id", "dependency", "tuple", "question_natural_language"),
    ("p1", 'a cat, "47"', "", "1", "0", "entity - whole (cat)", "Is there a cat?"),
    ("p1", 'a cat, "47"', "", "2", "1", "other - text (47)", "Does it say 47?"),
    ("p2", "a dog", "", "1", "0", "entity - whole (dog)", "Is there a dog?"),
)


def table(rows: tuple[tuple[str, ...], ...]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


STYLES = ("anime", "concept-art", "paintings", "photo")
FILES = {
    "djghosh13/geneval/prompts/evaluation_metadata.jsonl": json.dumps(GENEVAL) + "\n",
    "facebookresearch/GenEval2/geneval2_data.jsonl": json.dumps(GENEVAL2) + "\n",
    "yifan123/flow_grpo/dataset/ocr/test.txt": 'a sign that reads "Gas 3", at dusk\n',
    "yifan123/flow_grpo/dataset/pickscore/test.txt": "a cup\na bowl\n",
    "sayakpaul/drawbench/DrawBench Prompts - Sheet1.csv": "Prompts,Category\nA red car.,Colors\n",
    "TencentQQGYLab/ELLA/dpg_bench/dpg_bench.csv": table(DPG),
    "google-research/parti/PartiPrompts.tsv": (
        'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\n"G I" in red\tIllustrations\tWriting\t\n'
    ),
    **{
        f"zhwang/HPDv2/benchmark/{style}.json": json.dumps([f"{style} one", f"{style} two"])
        for style in STYLES
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def read(root: Path) -> Callable[..., PromptSet]:
    def reader(name: str, *overrides: str) -> PromptSet:
        (protocol,) = compose_protocols([name], [f"benchmark.source.root={root}", *overrides])
        return read_prompts(protocol)

    return reader


@pytest.mark.parametrize(
    ("name", "texts", "groups"),
    [
        ("geneval", ["a photo of two benches"], ["counting"]),
        ("geneval2", ["four white bicycles"], ["3"]),
        ("ocr", ['a sign that reads "Gas 3", at dusk'], ["ocr"]),
        ("pickscore", ["a cup", "a bowl"], ["pickscore"] * 2),
        ("drawbench", ["A red car."], ["Colors"]),
        ("dpg", ['a cat, "47"', "a dog"], ["dpg"] * 2),
        ("partiprompts", ["bond", '"G I" in red'], ["Abstract", "Illustrations"]),
        ("hpdv2", [f"{s} {n}" for s in STYLES for n in ("one", "two")], [s for s in STYLES for _ in "ab"]),
    ],
)  # fmt: skip
def test_published_files_are_read(
    read: Callable[..., PromptSet], name: str, texts: list[str], groups: list[str]
) -> None:
    prompts = read(name)
    assert ([prompt.text for prompt in prompts.prompts], prompts.groups) == (texts, groups)


def test_metadata_reaches_the_rewards_as_published(read: Callable[..., PromptSet]) -> None:
    assert read("geneval").prompts[0].metadata["include"] == GENEVAL["include"]
    assert read("geneval2").prompts[0].metadata["vqa_list"] == GENEVAL2["vqa_list"]
    assert read("ocr").prompts[0].metadata == {"text": "Gas 3"}
    cat, dog = read("dpg").prompts
    assert cat.metadata["item_id"] == "p1"
    assert cat.metadata["question_natural_language"] == ["Is there a cat?", "Does it say 47?"]
    assert (cat.metadata["proposition_id"], cat.metadata["dependency"]) == (["1", "2"], ["0", "1"])
    assert dog.metadata["dependency"] == ["0"]


def test_what_was_read_is_hashed_and_other_prompts_change_the_name(
    read: Callable[..., PromptSet], root: Path
) -> None:
    file = root / "yifan123/flow_grpo/dataset/pickscore/test.txt"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    prompts = read("pickscore")
    assert prompts.sha256 == {"pickscore": digest}
    assert prompts.to_json()["source"]["read_sha256"] == {"pickscore": digest}
    assert prompts.protocol.name == "pickscore (changed: prompts)"
    same = read("pickscore", f"benchmark.source.sha256.pickscore={digest}")
    assert same.protocol.changes == (f"source.sha256.pickscore={digest}",)
    assert read_prompts(compose_protocols(["tiny"])[0]).protocol.name == "tiny"


def test_a_number_of_prompts_counts_per_file(read: Callable[..., PromptSet]) -> None:
    prompts = read("hpdv2", "benchmark.prompts=1")
    assert prompts.groups == ["anime", "concept-art", "paintings", "photo"]
    assert [prompt.text for prompt in read("dpg", "benchmark.prompts=1").prompts] == ['a cat, "47"']


def test_missing_prompts_are_named(tmp_path: Path) -> None:
    (protocol,) = compose_protocols(["geneval"], [f"benchmark.source.root={tmp_path}"])
    with pytest.raises(DataError, match="djghosh13/geneval/prompts/evaluation_metadata.jsonl does not exist"):
        read_prompts(protocol)


def test_a_group_that_prompts_lack_is_named(read: Callable[..., PromptSet]) -> None:
    with pytest.raises(DataError, match=r"benchmark\.group=tga, .* Expected one of tag, include"):
        read("geneval", "benchmark.group=tga")


def test_prompts_are_fetched_once_from_the_pinned_commit(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(url: str, **rest: object) -> httpx.Response:
        asked.append(url)
        return httpx.Response(200, text=json.dumps(GENEVAL), request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", answer)
    (protocol,) = compose_protocols(["geneval"])
    for _ in range(2):
        assert read_prompts(protocol).groups == ["counting"]
    assert asked == [
        "https://raw.githubusercontent.com/djghosh13/geneval/af4902f24d3ca90ebbb446dd9891a59e0f82725f/"
        "prompts/evaluation_metadata.jsonl"
    ]


@pytest.mark.parametrize("name", ["geneval", "hpdv2"])
def test_prompts_that_cannot_be_fetched_are_named_with_the_remedy(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(url: str, **rest: object) -> httpx.Response:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(httpx, "get", refuse)
    with pytest.raises(DataError, match=r"cannot be fetched: .* set benchmark\.source\.root=FOLDER") as error:
        read_prompts(compose_protocols([name])[0])
    assert error.value.exit_code == 2
