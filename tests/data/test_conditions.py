"""Rows name pictures to start from; they are read, made upright, and fitted to the run's resolution."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from marble_cli.data.condition_checks import check_conditions
from marble_cli.data.conditions import Condition, fit_picture, montage
from marble_cli.data.prompts import Prompt
from marble_cli.errors import DataError
from marble_cli.pictures import seen_sizes

Reader = Callable[..., list[Prompt]]


def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_rows(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_rows_name_pictures_below_the_root(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "in").mkdir()
    picture().save(tmp_path / "in" / "a.png")
    write_rows(tmp_path, {"prompt": "make it blue", "image": "in/a.png", "x": 1}, {"prompt": "a cup"})
    first, second = read("p.jsonl")
    assert first.metadata == {"x": 1}
    assert second.images == ()
    expected = torch.from_numpy(np.array(picture())).permute(2, 0, 1)
    torch.testing.assert_close(first.images[0].pixels(24, 16), expected, rtol=0, atol=0)
    assert first.where == first.images[0].where == f"{tmp_path / 'p.jsonl'}, line 1"


def test_another_key_or_none_names_the_picture(tmp_path: Path, read: Reader) -> None:
    picture().save(tmp_path / "a.png")
    write_rows(tmp_path, {"prompt": "a", "image": "a.png", "from": "a.png"})
    (other,), (none,) = read("p.jsonl", image_key="from"), read("p.jsonl", image_key=None)
    assert len(other.images) == 1
    assert other.metadata == {"image": "a.png"}
    assert none.images == ()
    assert none.metadata == {"image": "a.png", "from": "a.png"}


def test_prompts_differ_by_text_and_by_the_name_of_the_picture(tmp_path: Path, read: Reader) -> None:
    """Nothing is read for that, so the files need not be there."""
    write_rows(tmp_path, *({"prompt": "a", "image": f"{name}.png"} for name in ("a", "b", "a")))
    one, other, again = (prompt.key for prompt in read("p.jsonl"))
    assert one == again != other
    assert one[0] == other[0] == "a"


@pytest.mark.parametrize(("size", "box"), [((48, 16), (16, 0, 32, 16)), ((16, 48), (0, 16, 16, 32))])
def test_pictures_cover_the_resolution_and_lose_their_edges(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """A picture of two flat colours, its middle and its ends, keeps the middle alone."""
    image = Image.new("RGB", size, "red")
    image.paste((0, 0, 255), box)
    fitted = fit_picture(torch.from_numpy(np.array(image)).permute(2, 0, 1), 8, 8)
    assert fitted.shape == (3, 8, 8)
    assert fitted.dtype is torch.uint8
    torch.testing.assert_close(
        fitted[:, 2:-2, 2:-2].float().mean((1, 2)), torch.tensor([0.0, 0.0, 255.0]), rtol=0, atol=1
    )


def test_a_picture_that_changed_is_not_used(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    condition = Condition("p.jsonl, line 3", tmp_path / "a.png")
    assert condition.pixels(8, 8).shape == (3, 8, 8)
    picture(seed=1).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"p\.jsonl, line 3: .*a\.png has changed since"):
        condition.pixels(8, 8)


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **more)
    return content.getvalue()


def same_picture(prompt: Prompt, image: Image.Image) -> None:
    (found,) = prompt.images
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(found.pixels(*image.size), expected)


@pytest.mark.parametrize("form", ["bytes", "record", "path"])
def test_parquet_columns_hold_pictures_or_their_paths(tmp_path: Path, read: Reader, form: str) -> None:
    picture(seed=1).save(tmp_path / "b.png")
    cells = {
        "bytes": [encoded(picture()), encoded(picture(seed=1)), None],
        "record": [
            {"bytes": encoded(picture()), "path": "a.png"},
            {"bytes": None, "path": "b.png"},
            {"bytes": None, "path": None},
        ],
        "path": ["a.png", "b.png", ""],
    }[form]
    picture().save(tmp_path / "a.png")
    table = pyarrow.table({"prompt": ["a", "b", "c"], "image": pyarrow.array(cells), "n": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "p.parquet")
    first, second, third = read("p.parquet")
    same_picture(first, picture())
    same_picture(second, picture(seed=1))
    assert third.images == ()
    assert [prompt.metadata for prompt in (first, second, third)] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert len({first.key, second.key, third.key}) == 3


@pytest.mark.parametrize("form", ["bytes", "record", "path"])
def test_list_columns_hold_several_pictures_or_their_paths(tmp_path: Path, read: Reader, form: str) -> None:
    for seed, name in enumerate(("a.png", "b.png")):
        picture(seed=seed).save(tmp_path / name)
    one, other = {
        "bytes": [encoded(picture()), encoded(picture(seed=1))],
        "record": [{"bytes": encoded(picture()), "path": None}, {"bytes": None, "path": "b.png"}],
        "path": ["a.png", "b.png"],
    }[form]
    table = pyarrow.table({"prompt": ["a", "b", "c"], "image": [[other, one], [one], None]})
    parquet.write_table(table, tmp_path / "p.parquet")
    both, single, none = read("p.parquet")
    for found, seed in zip((*both.images, *single.images), (1, 0, 0), strict=True):
        same_picture(Prompt("", images=(found,)), picture(seed=seed))
    assert none.images == ()


def test_datasets_of_pictures_keep_them_undecoded(
    tmp_path: Path, read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "prompt": datasets.Value("string"),
            "all": datasets.List(datasets.Image()),
        }
    )
    pictures = [picture(), picture(seed=1)]
    rows = {"image": pictures, "prompt": ["a", "b"], "all": [pictures, pictures[:1]]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    first, second = read("train", hub=str(tmp_path / "set"))
    same_picture(first, picture())
    same_picture(second, picture(seed=1))
    assert isinstance(first.images[0].content, memoryview)
    both, single = read("train", hub=str(tmp_path / "set"), image_key="all")
    assert [len(prompt.images) for prompt in (both, single)] == [2, 1]
    same_picture(Prompt("", images=both.images[1:]), picture(seed=1))


def test_every_kind_of_picture_is_seen_as_a_viewer_shows_it(tmp_path: Path, read: Reader) -> None:
    """Grey of 16 bits, a palette with a transparent colour, and a picture that EXIF turns by a quarter."""
    Image.fromarray(np.full((8, 8), 51 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.new("RGB", (16, 8), "white")
    turned.paste((0, 0, 0), (0, 0, 8, 8))
    turned.save(tmp_path / "turned.png", exif=exif)
    names = ("deep", "palette", "turned")
    write_rows(tmp_path, *({"prompt": "a", "image": f"{name}.png"} for name in names))
    deep, flat, upright = [prompt.images[0] for prompt in read("p.jsonl")]
    assert deep.pixels(8, 8).unique().tolist() == [51]
    assert flat.pixels(8, 8)[:, 0, 0].tolist() == [200, 0, 0]
    assert flat.pixels(8, 8)[:, 1, 1].tolist() == [255, 255, 255]
    pixels = upright.pixels(8, 16)  # the black half is above
    assert pixels[:, :8].unique().tolist() == [0]
    assert pixels[:, 8:].unique().tolist() == [255]


def faulty_pictures(folder: Path) -> None:
    """Write pictures with one fault each."""
    (folder / "text.png").write_text("no picture")
    content = encoded(picture(200, 200), "JPEG")
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    bomb = encoded(Image.new("1", (20_000, 10_000)))
    (folder / "bomb.png").write_bytes(bomb)
    picture().save(folder / "good.png")


def test_faulty_pictures_are_listed_by_source_file_and_line(tmp_path: Path, read: Reader) -> None:
    faulty_pictures(tmp_path)
    names = ("good.png", "missing.png", "text.png", "cut.jpg", "bomb.png", "good.png")
    write_rows(tmp_path, *({"prompt": "a", "image": name} for name in names))
    prompts = read("p.jsonl")
    with pytest.raises(DataError) as raised:
        check_conditions(prompts, "flux", least=1, most=1)
    said = str(raised.value)
    assert f"data.sources.signs: {tmp_path / 'p.jsonl'}, line 2: {tmp_path / 'missing.png'} cannot be" in said
    assert "line 3" in said
    assert "text.png is no picture that can be read" in said
    assert "line 4" in said
    assert "cut.jpg cannot be read" in said
    assert said.endswith("and 1 more")
    with pytest.raises(DataError, match=r"line 5: .*bomb\.png has 200,000,000 pixels; at most 89,478,485"):
        check_conditions(prompts[4:], "flux", least=1, most=1)


def test_processes_share_the_reading_and_find_every_fault(tmp_path: Path, read: Reader) -> None:
    names = [f"{i}.png" for i in range(5)]
    write_rows(tmp_path, *({"prompt": "a", "image": name} for name in names))
    found = []
    for rank in range(2):
        with pytest.raises(DataError) as raised:
            check_conditions(read("p.jsonl"), "flux", least=1, most=1, rank=rank, world=2)
        found.append([name for name in names if f"{name} cannot" in str(raised.value)])
    assert found == [["0.png", "2.png", "4.png"], ["1.png", "3.png"]]


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        (
            1,
            1,
            r"path=m starts from a picture, and there is none in data\.sources\.signs: .*line 2; .*4",
        ),
        (0, 0, r"model\.path=m starts from no picture, and there is one in .*line 1; .*image_key=null"),
        (0, None, r"Some rows have a picture, and there is none in .*line 2; .*line 4\. Expected one in all"),
    ],
)
def test_models_and_rows_must_agree(
    tmp_path: Path, read: Reader, least: int, most: int | None, said: str
) -> None:
    picture().save(tmp_path / "a.png")
    with_picture = {"prompt": "a", "image": "a.png"}
    write_rows(tmp_path, with_picture, {"prompt": "b"}, with_picture, {"prompt": "c", "image": " "})
    prompts = read("p.jsonl")
    with pytest.raises(DataError, match=said):
        check_conditions(prompts, "m", least, most)
    alike = prompts[1::2] if most == 0 else prompts[::2]
    check_conditions(alike, "m", least, most)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (3, 'under the key "image"'),
        ({"path": "a.png"}, 'under the key "image"'),
        (["a.png", None], 'at place 2 of the list under "image"'),
        (["a.png", "b.png", " "], 'at place 3 of the list under "image"'),
        ([["a.png"]], 'at place 1 of the list under "image"'),
    ],
)
def test_a_value_that_is_no_path_is_a_bad_row(tmp_path: Path, read: Reader, value: Any, place: str) -> None:
    write_rows(tmp_path, {"prompt": "a", "image": value})
    with pytest.raises(DataError, match=f"line 1: no path {place} but"):
        read("p.jsonl")


def test_rows_list_pictures_in_their_order(tmp_path: Path, read: Reader) -> None:
    """As many as each likes; a list of one is that picture, and an empty one is none."""
    lists = (["a.png", "b.png"], ["b.png", "a.png"], ["a.png"], "a.png", [])
    write_rows(tmp_path, *({"prompt": "p", "image": value} for value in lists))
    both, turned, one, alone, none = read("p.jsonl")
    names = [[path_of(image).name for image in prompt.images] for prompt in (both, turned, one)]
    assert names == [["a.png", "b.png"], ["b.png", "a.png"], ["a.png"]]
    assert none.images == ()
    assert one.key == alone.key
    assert len({prompt.key for prompt in (both, turned, one, none)}) == 4
    assert both.images[1].where == f"{tmp_path / 'p.jsonl'}, line 1, picture 2"


def path_of(image: Condition) -> Path:
    assert isinstance(image.content, Path)
    return image.content


def test_a_faulty_picture_is_named_with_its_place_in_the_list(tmp_path: Path, read: Reader) -> None:
    faulty_pictures(tmp_path)
    write_rows(tmp_path, *({"prompt": "a", "image": ["good.png", name]} for name in ("good.png", "text.png")))
    with pytest.raises(DataError, match=r"p\.jsonl, line 2, picture 2: .*text\.png is no picture") as raised:
        check_conditions(read("p.jsonl"), "m", 1, None)
    assert "line 1" not in str(raised.value)


def test_more_pictures_than_a_model_takes_are_refused_by_row(tmp_path: Path, read: Reader) -> None:
    picture().save(tmp_path / "a.png")
    write_rows(tmp_path, *({"prompt": "a", "image": ["a.png"] * count} for count in (1, 2, 1, 3)))
    said = (
        r"path=m starts from 1 picture per prompt, and there are more in data\.sources\.signs: .*line 2; .*4"
    )
    with pytest.raises(DataError, match=said):
        check_conditions(read("p.jsonl"), "m", 1, 1)
    check_conditions(read("p.jsonl"), "m", 1, 3)


def test_several_pictures_keep_their_shapes_and_one_takes_that_of_the_image(tmp_path: Path) -> None:
    """Of several, each has at most as many pixels as the image, and at most eight times as many on a side."""
    made = []
    for name, size in {"wide": (60, 30), "high": (200, 800), "small": (4, 3), "thin": (90, 1)}.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        made.append(Condition("line 1", tmp_path / f"{name}.png"))
    assert seen_sizes(made, 40, 20) == [(40, 20), (14, 57), (4, 3), (8, 1)]
    assert seen_sizes(made[1:2], 40, 20) == [(40, 20)]


def test_a_sheet_shows_every_picture_whole(tmp_path: Path) -> None:
    """In reading order, each in its share of the sheet, on white."""
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 8, 8) for colour in colours]
    sheet = montage(pictures, 32, 16)
    assert sheet.shape == (3, 16, 32)
    found = [tuple(int(v) for v in sheet[:, row, column]) for row, column in ((8, 5), (8, 15), (8, 26))]
    assert found == colours
    assert torch.equal(montage(pictures[:1], 8, 8), pictures[0])
