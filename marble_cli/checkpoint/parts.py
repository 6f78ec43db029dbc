"""Cut groups of tensors into files of bounded size, which several ranks gather and write.

A file holds whole tensors, whatever their layout on the ranks, so that any number of processes can read it.
Files of one group are named as diffusers names the parts of a model: NAME-00001-of-00003.safetensors.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from torch.distributed.tensor import DTensor

from marble_cli.checkpoint import manifest, tensor_files
from marble_cli.checkpoint.tensor_files import SUFFIX
from marble_cli.distributed.ranks import Ranks
from marble_cli.distributed.shards import full_on
from marble_cli.errors import StorageError

PART_BYTES = 2 * 2**30  # a file of more than one tensor holds at most as much
BALANCE = "balance"  # the group with a balance's state
WITH_INTEGERS = (BALANCE, "optimizer")  # groups whose types are checked by those that read them
HEADER = 100  # bytes per tensor in a file's header, about, besides its name
PART = re.compile(r"-\d{5}-of-\d{5}(?=\.safetensors$)", re.ASCII)


@dataclass(frozen=True)
class Part:
    """A file of a step folder: its name there, its tensors as this rank holds them, its header's strings."""

    name: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]

    @property
    def size(self) -> int:
        """The bytes of the file, about."""
        return sum(_bytes(tensor) + len(key) + HEADER for key, tensor in self.tensors.items())


def split(name: str, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Part]:
    """Cut the tensors of the group that `name` is the file of; only whole tensors go into a file."""
    if not tensors:
        return [Part(name, tensors, header)]
    plan = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=_bytes,
        filename_pattern=name.removesuffix(SUFFIX) + "{suffix}" + SUFFIX,
        max_shard_size=PART_BYTES,
    )
    return [
        Part(file, {key: tensors[key] for key in keys}, header)
        for file, keys in plan.filename_to_tensors.items()
    ]


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a whole tensor, of which this rank may hold a shard."""
    return tensor.numel() * tensor.element_size()


def whole_name(name: str) -> str:
    """Return the name of the file that a part is cut from; other names are returned as they are."""
    return PART.sub("", name)


@dataclass(frozen=True)
class Unwritten:
    """A step folder that is not written yet.

    Attributes:
        step: the step.
        info: the trainer's figures, ready for JSON.
        scale: of a LoRA.
        size: bytes of all files, about.
        rounds: the parts that this rank writes (`gather`), taken from the tensors as they are written.
    """

    step: int
    info: dict[str, Any]
    scale: float | None
    size: int
    rounds: Iterable[Part | None]

    def in_memory(self) -> "Unwritten":
        """Return the same with all parts on the CPU, so that the tensors may change; all ranks take part."""
        return replace(self, rounds=list(self.rounds))


def gather(parts: Sequence[Part], ranks: Ranks) -> Iterator[Part | None]:
    """Yield copies on the CPU of the parts that this rank writes: one per round, None if it has none then.

    In a round, each rank of the main rank's machine gets a part; other machines may not see that disk. A
    device holds one whole tensor at any time. All ranks that hold the tensors must go through all rounds.
    """
    machine = ranks.broadcast_json(ranks.local_world)
    for first in range(0, len(parts), machine):
        own: Part | None = None
        for writer, part in enumerate(parts[first : first + machine]):
            mine = writer == ranks.rank
            whole = {
                key: full_on(tensor, writer)
                for key, tensor in part.tensors.items()
                if mine or isinstance(tensor, DTensor)
            }
            own = Part(part.name, whole, part.header) if mine else own
        yield own


def write_parts(
    folder: Path,
    step: int,
    rounds: Iterable[Part | None],
    writing: Callable[[], AbstractContextManager[None]],
) -> dict[str, tuple[int, str]]:
    """Write the parts of a step folder; return bytes and SHA-256 of this rank's files, by name.

    Args:
        folder: the step folder under its temporary name.
        step: the step, for messages.
        rounds: what `gather` yields.
        writing: the context in which ranks write; errors inside must raise on all ranks.

    Raises:
        StorageError: the disk is full, or a value is not finite.
        PeerError: another rank raised that.
    """
    written = dict[str, tuple[int, str]]()
    for own in rounds:
        with writing():
            if own is not None:
                written[own.name] = _write(folder, step, own)
    return written


def _write(folder: Path, step: int, part: Part) -> tuple[int, str]:
    if bad := tensor_files.not_finite(part.tensors):
        raise StorageError(
            f"step {step} is not saved: {bad} of {part.name} is not finite, so no run could resume from it. "
            "Earlier checkpoints are untouched; resume from one with --resume auto and e.g. a lower "
            "optimizer.lr."
        )
    file = folder / part.name
    tensor_files.write(file, part.tensors, part.header)
    return manifest.describe(file)


def read(
    folder: Path, known: manifest.Manifest, names: Collection[str], verified: Collection[str]
) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
    """Read files of a step folder; return the tensors and the header of each group by its whole file's name.

    Args:
        folder: the step folder.
        known: its manifest.
        names: the files to read.
        verified: those whose digests and values are checked.

    Raises:
        CheckpointError: the folder holds other files than its manifest lists, or a file of `verified` is
            altered or not finite.
    """
    manifest.check_files(folder, known, verified)
    groups = dict[str, tuple[dict[str, Tensor], dict[str, str]]]()
    for name in names:
        group, checked = whole_name(name), name in verified
        floats = group.removesuffix(SUFFIX) not in WITH_INTEGERS
        tensors, header = tensor_files.read(folder / name, floats=floats, finite=checked)
        groups[group] = groups.get(group, ({}, {}))[0] | tensors, header
    return groups
