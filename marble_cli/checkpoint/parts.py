"""Cut groups of tensors into files of bounded size, which several ranks write.

A file holds whole tensors, whatever their layout on the ranks, so that any number of processes can read it.
Files of one group are named as diffusers names the parts of a model: NAME-00001-of-00003.safetensors.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

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


@dataclass
class PartWriter:
    """Writes the parts of a step folder; the ranks of the main rank's machine take turns.

    Other machines may not see that disk. At any time a rank holds one part, and a device one whole tensor.

    Attributes:
        folder: the step folder under its temporary name.
        step: the step, for messages.
        ranks: the ranks that hold the tensors; all of them must make the same calls.
        writing: the context in which ranks write; errors inside must raise on all ranks.
    """

    folder: Path
    step: int
    ranks: Ranks
    writing: Callable[[], AbstractContextManager[None]]

    def write(self, parts: Sequence[Part]) -> dict[str, tuple[int, str]]:
        """Write all parts; return bytes and SHA-256 of those that this rank wrote, by name.

        Raises:
            StorageError: the disk is full, or a value is not finite.
            PeerError: another rank raised that.
        """
        machine, written = self.ranks.broadcast_json(self.ranks.local_world), dict[str, tuple[int, str]]()
        for first in range(0, len(parts), machine):
            own: Part | None = None
            for writer, part in enumerate(parts[first : first + machine]):
                mine = writer == self.ranks.rank
                whole = {
                    key: full_on(tensor, writer)
                    for key, tensor in part.tensors.items()
                    if mine or isinstance(tensor, DTensor)
                }
                own = Part(part.name, whole, part.header) if mine else own
            with self.writing():
                if own is not None:
                    written[own.name] = self._write(own)
        return written

    def _write(self, part: Part) -> tuple[int, str]:
        if bad := tensor_files.not_finite(part.tensors):
            raise StorageError(
                f"step {self.step} is not saved: {bad} of {part.name} is not finite, so no run could resume "
                "from it. Earlier checkpoints are untouched; resume from one with --resume auto and e.g. "
                "a lower optimizer.lr."
            )
        file = self.folder / part.name
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
