"""Write picture files for tests, and look at what is read."""

import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor


def saved(folder: Path, image: Image.Image, name: str, **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def written(folder: Path, data: bytes, name: str = "picture") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def pixels(picture: Tensor) -> list[list[int]]:
    """The colours of a picture, row by row."""
    assert picture.dtype is torch.uint8
    assert picture.ndim == 3
    assert len(picture) == 3
    return picture.flatten(1).T.tolist()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, depth: int, kind: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of one row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )
