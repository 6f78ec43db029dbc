"""Prompt embeddings on disk: each prompt is encoded once, and the text encoders need not stay on the GPU.

SD3.5's T5 alone has 4.7 billion parameters that training never touches.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from marble_cli.errors import RequestError
from marble_cli.files import writing
from marble_cli.policy.base import PromptEmbeddings

log = logging.getLogger("marble")

NO_ROOM = (
    "Every prompt takes as much. Free some space or set model.embedding_cache= to a folder with more; "
    "a run can be continued so with --resume auto."
)
SAMPLED = 64  # values of each weight that tell one text encoder from another


class EmbeddingCache:
    """One safetensors file a prompt in `folder`, named by the prompt and by all that its embeddings depend on."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def file(self, prompt: str, *, negative: bool = False) -> Path:
        kind = " negative" if negative else ""  # some families encode a prompt otherwise
        name = hashlib.sha256(f"{self.identity}{kind}\n{prompt}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def missing(self, prompts: Iterable[str], *, negative: bool = False) -> list[str]:
        """Those of the prompts, each once, whose embeddings are yet to be made."""
        return [
            prompt for prompt in dict.fromkeys(prompts) if not self.file(prompt, negative=negative).is_file()
        ]

    def write(self, prompt: str, embeddings: PromptEmbeddings, *, negative: bool = False) -> None:
        """Keep the embeddings of one prompt; a file is whole or not there, whoever else writes it.

        Raises:
            StorageError: there is no room for it, or the folder cannot be written.
        """
        file = self.file(prompt, negative=negative)
        temporary = file.with_name(f"{file.name}.{uuid4().hex}.writing")
        whole = save({name: tensor[0].cpu().contiguous() for name, tensor in embeddings.tensors.items()})
        with writing(file, NO_ROOM, len(whole)):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(whole)
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)

    def read(
        self, prompts: Sequence[str], device: torch.device, *, negative: bool = False
    ) -> PromptEmbeddings | None:
        """The embeddings of `prompts`; None if a file of theirs is damaged or gone; what is damaged is removed.

        Raises:
            RequestError: a file cannot be read.
            StorageError: a damaged one cannot be removed.
        """
        rows = [self._row(self.file(prompt, negative=negative)) for prompt in prompts]
        if any(row is None for row in rows):
            return None
        whole = [row for row in rows if row is not None]
        return PromptEmbeddings(
            {name: torch.stack([row[name] for row in whole]).to(device) for name in whole[0]}
        )

    def _row(self, file: Path) -> dict[str, Tensor] | None:
        try:
            return load(file.read_bytes())
        except FileNotFoundError:  # another process found it damaged
            return None
        except OSError as error:
            raise RequestError(
                f"model.embedding_cache={self.folder} cannot be read: {error.strerror}. Give rights there, name another "
                "folder, or set model.embedding_cache=null, which keeps the text encoders on the device."
            ) from error
        except SafetensorError as error:
            log.warning("embeddings %s are damaged (%s); they are made anew", file, error)
        with writing(file, NO_ROOM):
            file.unlink(missing_ok=True)
        return None


def fingerprint(encoders: Sequence[Any], tokenizers: Sequence[Any], *settings: object) -> str:
    """SHA-256 of all that embeddings depend on, wherever it was loaded from.

    These are `settings`, the libraries that hold templates and instructions, the tokenizers, and the configuration and
    some values of every weight of the text encoders.
    """
    libraries = [version(library) for library in ("diffusers", "transformers")]
    digest = hashlib.sha256(repr((libraries, *settings)).encode())
    for tokenizer in tokenizers:
        known = sorted(tokenizer.get_vocab().items())
        manner = (tokenizer.padding_side, tokenizer.model_max_length, tokenizer.chat_template)
        digest.update(repr((known, sorted(tokenizer.special_tokens_map.items()), manner)).encode())
    for encoder in encoders:
        config = {key: value for key, value in encoder.config.to_dict().items() if key != "_name_or_path"}
        digest.update(repr(sorted(config.items())).encode())
        for name, parameter in encoder.state_dict().items():
            flat = parameter.flatten()
            chosen = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(chosen.double().cpu().numpy().tobytes())
    return digest.hexdigest()
