"""Cache prompt embeddings on disk: each prompt is encoded once, and the text encoders leave the GPU.

SD3.5's T5 alone has 4.7 billion parameters, which training never changes.
"""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from marble_cli.errors import RequestError
from marble_cli.files import writing
from marble_cli.policy.base import PromptEmbeddings, count_tokens
from marble_cli.policy.diffusers_types import Autoencoder, TextEncoder
from marble_cli.policy.provenance import digest_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("marble")

NO_ROOM = (
    "Every prompt takes as much. Free some space or set model.embedding_cache= to a folder with more; "
    "then resume the run with --resume auto."
)


class EmbeddingCache:
    """Keep one safetensors file per prompt, or per prompt and picture, in `folder`.

    A file's name is a digest of the prompt, of the picture's key and of `identity`, all else that its
    embeddings depend on.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def file(self, prompt: str, picture: str = "", *, negative: bool = False) -> Path:
        kind = " negative" if negative else ""  # some families encode negative prompts differently
        kind += f" {picture}" if picture else ""
        name = hashlib.sha256(f"{self.identity}{kind}\n{prompt}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def write(self, file: Path, embeddings: PromptEmbeddings) -> None:
        """Write the embeddings of one prompt atomically; several processes may write the same file.

        Raises:
            StorageError: there is no room for the file, or the folder cannot be written.
        """
        temporary = file.with_name(f"{file.name}.{uuid4().hex}.writing")
        whole = save({name: tensor[0].cpu().contiguous() for name, tensor in embeddings.tensors.items()})
        with writing(file, NO_ROOM, len(whole)):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(whole)
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)

    def read(self, files: Sequence[Path], device: torch.device) -> PromptEmbeddings | None:
        """Read the embeddings in `files`; return None if a file is missing or was damaged.

        Damaged files are removed.

        Raises:
            RequestError: a file cannot be read.
            StorageError: a damaged file cannot be removed.
        """
        rows = [self._read_file(file) for file in files]
        if any(row is None for row in rows):
            return None
        complete = [row for row in rows if row is not None]
        tensors = {name: torch.stack([row[name] for row in complete]) for name in complete[0]}
        lengths = count_tokens(tensors["mask"]) if "mask" in tensors else None
        return PromptEmbeddings({name: tensor.to(device) for name, tensor in tensors.items()}, lengths)

    def _read_file(self, file: Path) -> dict[str, Tensor] | None:
        try:
            return load(file.read_bytes())
        except FileNotFoundError:  # another process removed it as damaged
            return None
        except OSError as error:
            raise RequestError(
                f"model.embedding_cache={self.folder} cannot be read: {error.strerror}. Grant read "
                "access, name another folder, or set model.embedding_cache=null, which keeps the text "
                "encoders on the device."
            ) from error
        except SafetensorError as error:
            log.warning("embeddings %s are damaged (%s) and are encoded again", file, error)
        with writing(file, NO_ROOM):
            file.unlink(missing_ok=True)
        return None


def fingerprint(
    networks: Sequence[TextEncoder | Autoencoder],
    tokenizers: "Sequence[PreTrainedTokenizerBase]",
    *settings: object,
) -> str:
    """Return a SHA-256 of everything that embeddings depend on, wherever the networks were loaded from.

    It covers `settings`, the versions of the libraries that hold templates and instructions, the tokenizers,
    and the configuration and some values of every weight and buffer of `networks`: the text encoders, and
    the VAE if it encodes pictures.
    """
    libraries = [version(library) for library in ("diffusers", "transformers")]
    digest = hashlib.sha256(repr((libraries, *settings)).encode())
    for tokenizer in tokenizers:
        vocabulary = sorted(tokenizer.get_vocab().items())
        manner = (tokenizer.padding_side, tokenizer.model_max_length, tokenizer.chat_template)
        digest.update(repr((vocabulary, sorted(tokenizer.special_tokens_map.items()), manner)).encode())
    for network in networks:
        config = network.config if isinstance(network.config, Mapping) else network.config.to_dict()
        stated = {key: value for key, value in config.items() if not key.startswith("_")}
        digest.update(repr(sorted(stated.items())).encode())
        digest_tensors(digest, network.state_dict().items())
    return digest.hexdigest()
