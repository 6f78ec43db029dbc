"""Prompts from Parquet files and from datasets: here folders that need no network."""

import io
import json
import sys
import tarfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from marble_cli.data.prompts import Prompt
from marble_cli.errors import DataError

Reader = Callable[..., list[Prompt]]

ROWS: list[dict[str, Any]] = [
    {"prompt": 'a sign that says "47"', "text": "47", "include": None, "level": 1, "image": b"\x89PNG"},
    {
        "prompt": "two red boats",
        "text": None,
        "include": [{"class": "boat", "color": "red", "position": None}],
        "level": 2,
        "image": b"\x89PNG",
    },
]
METADATA = [{"text": "47", "level": 1}, {"include": [{"class": "boat", "color": "red"}], "level": 2}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = str(tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A Parquet file of `ROWS`."""
    file = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of two splits, of JSON lines and ten and two rows."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for split, count in (("train", 10), ("test", 2)):
        rows = [{"prompt": f"{split} {i}", "negative_prompt": "grey", "level": i} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_parquet_file_has_one_prompt_per_row(
    table: Path, read: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    assert read("p.parquet", image_key=None) == [
        Prompt(row["prompt"], metadata, "signs") for row, metadata in zip(ROWS, METADATA, strict=True)
    ]
    assert "columns left out because they hold no text or numbers: image" in caplog.text
    assert [p.metadata["text"] for p in read("p.parquet", metadata={"text": "none"})] == ["47", "none"]


def test_columns_of_every_plain_kind_are_metadata(tmp_path: Path, read: Reader) -> None:
    plain = {"n": 1, "x": 0.5, "yes": True, "words": ["a", "b"], "box": {"w": 1, "names": ["c"]}}
    other = {
        "when": pyarrow.scalar(0, pyarrow.timestamp("s")),
        "raw": [b"x"],
        "deep": {"image": {"bytes": b"x"}},
    }
    columns = {key: pyarrow.array([value]) for key, value in {"prompt": "a cup", **plain}.items()}
    columns["kind"] = pyarrow.array(["big"]).dictionary_encode()
    columns["share"] = pyarrow.array([[Decimal("0.25")]], pyarrow.list_(pyarrow.decimal128(5, 2)))
    columns |= {
        key: pyarrow.array([value.as_py() if key == "when" else value])  # type: ignore[attr-defined]
        for key, value in other.items()
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    assert read("p.parquet")[0].metadata == {**plain, "kind": "big", "share": [0.25]}
    json.dumps(read("p.parquet")[0].metadata)


def test_bad_row_is_refused_with_its_number(tmp_path: Path, read: Reader) -> None:
    texts = ["a", None, "b", "", "c"]
    parquet.write_table(pyarrow.table({"prompt": texts}), tmp_path / "p.parquet")
    with pytest.raises(
        DataError, match=r'p\.parquet, row 2: no text under the key "prompt".*; row 4: no text'
    ):
        read("p.parquet")
    parquet.write_table(pyarrow.table({"prompt": [1, 2]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"row 1: no text under the key \"prompt\" but '1' \(int\)"):
        read("p.parquet")


def test_missing_column_lists_the_existing_ones(table: Path, read: Reader) -> None:
    with pytest.raises(
        DataError, match=r"no column 'caption' .* It has: prompt, text, include, level\. Set .*prompt_key"
    ):
        read("p.parquet", prompt_key="caption")
    with pytest.raises(DataError, match="no column 'image' of text"):
        read("p.parquet", prompt_key="image")


def test_file_that_is_not_parquet_is_refused(tmp_path: Path, table: Path, read: Reader) -> None:
    (tmp_path / "text.parquet").write_text("a cup\n")
    (tmp_path / "cut.parquet").write_bytes(table.read_bytes()[:-20])
    for name in ("text.parquet", "cut.parquet"):
        with pytest.raises(
            DataError, match=rf"{name} of data\.sources\.signs cannot be read.*Expected a Parquet"
        ):
            read(name)
    with pytest.raises(DataError, match=r"Did you mean .*p\.parquet"):
        read("pp.parquet")


def test_dataset_is_read_by_split(dataset: Path, read: Reader) -> None:
    prompts = read("train", hub=str(dataset))
    assert prompts == [Prompt(f"train {i}", {"level": i}, "signs", "grey") for i in range(10)]
    assert [p.text for p in read("test", hub=str(dataset))] == ["test 0", "test 1"]
    assert [p.text for p in read("train[8:]", hub=str(dataset))] == ["train 8", "train 9"]
    assert read("train", hub=str(dataset), subset="default") == prompts


@pytest.mark.parametrize(
    ("values", "types"),
    [
        (["47", 13], "int, str"),
        (["47", None, 13], "int, str"),
        (["a", ["b"]], "list, str"),
        (["a", True], "bool, str"),
        ([{"class": "cup"}, "cup"], "dict, str"),
        (["x", 1.5, 2], "float, int, str"),
    ],
)
def test_column_of_several_types_is_left_out_with_the_types(
    tmp_path: Path, read: Reader, caplog: pytest.LogCaptureFixture, values: list[Any], types: str
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    rows = [{"prompt": f"p{i}", "text": value} for i, value in enumerate(values)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert all(not prompt.metadata for prompt in read("train", hub=str(folder)))
    assert f"column left out because its rows differ in type: text ({types})" in caplog.text
    assert "no text or numbers" not in caplog.text


def test_columns_that_are_left_out_are_named_with_their_types(
    table: Path, read: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    read("p.parquet", image_key=None)
    assert "because they hold no text or numbers: image (binary)" in caplog.text


def test_dataset_of_pictures_is_read_without_the_pictures(
    tmp_path: Path, read: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no picture", "path": None}], "caption": ["a cup"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    keys = {"hub": str(folder), "prompt_key": "caption", "image_key": None}
    assert read("train", **keys) == [Prompt("a cup", {}, "signs")]
    assert "left out because they hold no text or numbers: image" in caplog.text


@pytest.mark.parametrize(
    ("part", "keys", "said"),
    [
        ("trian", {}, r"split 'trian': Unknown split .*'train', 'test'"),
        ("train", {"subset": "hard"}, r"'hard' not found.*default"),
        (
            "train",
            {"prompt_key": "caption"},
            r"split 'train': there is no column 'caption' .* It has: prompt",
        ),
        (
            "train",
            {"hub": "nobody/nothing"},
            r"hub=nobody/nothing.*Couldn't reach.*Expected a dataset that can be",
        ),
        ("train", {"hub": "/nowhere/at/all"}, r"hub=/nowhere/at/all.*Expected a dataset that can be reached"),
        ("train[", {}, r"split 'train\['"),
    ],
)
def test_missing_part_of_a_dataset_lists_the_existing_ones(
    dataset: Path, read: Reader, part: str, keys: dict[str, str], said: str
) -> None:
    with pytest.raises(DataError, match=said) as error:
        read(part, **({"hub": str(dataset)} | keys))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("data.sources.signs.hub=")


def test_dataset_that_would_be_unpickled_is_refused(tmp_path: Path, read: Reader) -> None:
    """The library unpickles what its reader of archives finds in them."""
    folder = tmp_path / "archives"
    folder.mkdir()
    with tarfile.open(folder / "train.tar", "w") as archive:
        for name, content in (("a.txt", b"a cup"), ("a.pth", b"\x80\x04N.")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(
        DataError, match="its files are of the kind webdataset. Expected one of parquet, json"
    ):
        read("train", hub=str(folder))


@pytest.mark.parametrize(
    ("module", "part", "keys", "said"),
    [
        ("pyarrow", "p.parquet", {}, "signs is a Parquet file, for which pyarrow is missing here"),
        (
            "datasets",
            "train",
            {"hub": "a/b"},
            r"signs\.hub names a dataset, for which datasets is missing here",
        ),
    ],
)
def test_missing_library_names_the_command_that_installs_it(
    table: Path,
    read: Reader,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    part: str,
    keys: dict[str, str],
    said: str,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=said + r".*pip install 'marble-cli\[data\]'"):
        read(part, **keys)
