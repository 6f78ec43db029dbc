"""What can befall a step folder, by accident or by intent, and what is then said of it."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from marble_cli.checkpoint import manifest, store

LORA = f"lora/{store.WEIGHTS['lora']}"


class Payload:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def pickled(folder: Path) -> bytes:
    """A pickle that would create `unpickled` next to the step folder."""
    return pickle.dumps(Payload(folder.parent / "unpickled"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as one who knows how to sign it."""
    path = folder / manifest.NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content | {"sha256": manifest.own_digest(content)}))


def relist(folder: Path, name: str) -> None:
    """State the size and SHA-256 that the file has now."""
    entry = {"bytes": (folder / name).stat().st_size, "sha256": manifest._digest(folder / name)}
    rewrite(folder, lambda content: content["files"].update({name: entry}))


def flip(folder: Path) -> None:
    data = bytearray((folder / LORA).read_bytes())
    data[-1] ^= 1
    (folder / LORA).write_bytes(data)


def cut(folder: Path) -> None:
    file = folder / "behaviour.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def grow(folder: Path) -> None:
    with (folder / "behaviour.safetensors").open("ab") as stream:
        stream.write(b"more")


def lose(folder: Path) -> None:
    (folder / "ema" / store.WEIGHTS["lora"]).unlink()


def add(folder: Path) -> None:
    (folder / "ema" / "notes.txt").write_text("mine")


def add_pickle(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(pickled(folder))


def disguise_pickle(folder: Path) -> None:
    (folder / "behaviour.safetensors").write_bytes(pickled(folder))
    relist(folder, "behaviour.safetensors")


def nameless_pickle(folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / "extra")


def age(folder: Path) -> None:
    path = folder / manifest.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


def edit(folder: Path) -> None:
    path = folder / manifest.NAME
    path.write_text(path.read_text().replace('"step": ', '"step": 1'))


def garble(folder: Path) -> None:
    (folder / manifest.NAME).write_text("{")


def nest(folder: Path) -> None:
    (folder / manifest.NAME).write_text("[" * 100_000)


def swell(folder: Path) -> None:
    with (folder / manifest.NAME).open("r+b") as stream:
        stream.truncate(manifest.LARGEST + 1)


def link_file(folder: Path) -> None:
    elsewhere = shutil.move(folder / LORA, folder.parent / "elsewhere.safetensors")
    (folder / LORA).symlink_to(elsewhere)


def link_manifest(folder: Path) -> None:
    elsewhere = shutil.move(folder / manifest.NAME, folder.parent / "elsewhere.json")
    (folder / manifest.NAME).symlink_to(elsewhere)


def link_folder(folder: Path) -> None:
    elsewhere = shutil.move(folder, folder.parent.parent.with_name("elsewhere"))
    folder.symlink_to(elsewhere, target_is_directory=True)


def loop(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


def spoil(folder: Path) -> None:
    tensors = load_file(folder / LORA)
    next(iter(tensors.values())).view(-1)[0] = torch.inf
    save_file(tensors, folder / LORA)
    relist(folder, LORA)


def count(folder: Path) -> None:
    tensors = load_file(folder / LORA)
    save_file({name: tensor.long() for name, tensor in tensors.items()}, folder / LORA)
    relist(folder, LORA)


def named(name: str) -> Callable[[Path], None]:
    """List the behaviour policy under another name."""

    def harm(folder: Path) -> None:
        rewrite(folder, lambda c: c["files"].update({name: c["files"]["behaviour.safetensors"]}))

    return harm


def entry(key: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda c: c["files"]["behaviour.safetensors"].update({key: value}))


def stated(key: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda c: c.update({key: value}))


def figure(text: str) -> Callable[[Path], None]:
    """Put a JSON number into `info`, unchanged."""

    def harm(folder: Path) -> None:
        path = folder / manifest.NAME
        path.write_text(path.read_text().replace('"info": {', f'"info": {{"figure": {text}, '))

    return harm


COMMON: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (cut, "cut short"),
    "flipped": (flip, "was altered"),
    "missing": (lose, "is missing"),
    "additional": (add, "notes.txt is not part of this checkpoint"),
    "newer": (age, "format 99; this version reads 1"),
    "pickle": (add_pickle, "is a pickled file"),
}
OUTSIDE_NAMES = (
    "../../x.safetensors",
    "/etc/x.safetensors",
    "lora/../x.safetensors",
    "a\\x.safetensors",
    "x.pt",
    "",
    "a/b/x.safetensors",
)
RARE: dict[str, tuple[Callable[[Path], None], str]] = {
    "looped": (loop, "is not a checkpoint"),
    "grown": (grow, "has grown"),
    "disguised pickle": (disguise_pickle, "not a safetensors file"),
    "nameless pickle": (nameless_pickle, "is a pickled file"),
    "edited": (edit, "was altered"),
    "garbled": (garble, "is damaged"),
    "nested": (nest, "is damaged"),
    "swollen": (swell, "bytes, and 67,108,864 at most"),
    "linked file": (link_file, "is a link"),
    "linked manifest": (link_manifest, "is a link that leads out"),
    "linked folder": (link_folder, "is a link that leads out"),
    "infinite weight": (spoil, "not finite"),
    "whole numbers": (count, "int64"),
    **{f"named {name}": (named(name), "not a tensor file of this folder") for name in OUTSIDE_NAMES},
    **{
        f"bytes {value}": (entry("bytes", value), "the bytes of")
        for value in (-1, 2**63, 1e30, True, "9", None)
    },
    **{f"sha256 {value}": (entry("sha256", value), "the sha256 of") for value in (7, "00", None)},
    **{f"step {value}": (stated("step", value), "step is") for value in (-1, 1.5, True, "2", None)},
    "another step": (stated("step", 7), "it is of step 7"),
    "info": (stated("info", []), "info is not an object"),
    "files": (stated("files", []), "files is not an object"),
    "no LoRA": (stated("files", {}), "does not list lora"),
    "format": (stated("format_version", "1"), "format_version is '1'"),
    **{f"figure {text}": (figure(text), "is not a finite number") for text in ("NaN", "-Infinity", "1e999")},
    "figure of many digits": (figure("1" * 5000), "is damaged"),
}
