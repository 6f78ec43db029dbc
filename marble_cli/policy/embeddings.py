"""Prompt embeddings on disk: each prompt is encoded once, and the text encoders need not stay on the GPU.

SD3.5's T5 alone has 4.7 billion parameters that training never touches.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from marble_cli.folder import writing
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

    def file(self, prompt: str) -> Path:
        name = hashlib.sha256(f"{self.identity}\n{prompt}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Those of the prompts, each once, whose embeddings are yet to be made."""
        return [prompt for prompt in dict.fromkeys(prompts) if not self.file(prompt).is_file()]

    def write(self, prompt: str, embeddings: PromptEmbeddings) -> None:
        """Keep the embeddings of one prompt; a file is whole or not there, whoever else writes it.

        Raises:
            StorageError: there is no room for it.
        """
        file = self.file(prompt)
        tensors = {name: tensor[0].cpu().contiguous() for name, tensor in embeddings.tensors.items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        with writing(file, NO_ROOM, size):
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".writing")
            os.close(handle)
            try:
                save_file(tensors, temporary)
                os.replace(temporary, file)
            finally:
                Path(temporary).unlink(missing_ok=True)

    def read(self, prompts: Sequence[str], device: torch.device) -> PromptEmbeddings | None:
        """The embeddings of `prompts`; None if a file of theirs is damaged, which is then removed."""
        rows = [self._row(prompt) for prompt in prompts]
        if any(row is None for row in rows):
            return None
        whole = [row for row in rows if row is not None]
        return PromptEmbeddings(
            {name: torch.stack([row[name] for row in whole]).to(device) for name in whole[0]}
        )

    def _row(self, prompt: str) -> dict[str, Tensor] | None:
        file = self.file(prompt)
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            log.warning("embeddings %s cannot be read (%s); they are made anew", file, error)
            file.unlink(missing_ok=True)
            return None


def fingerprint(encoders: Sequence[nn.Module], *settings: object) -> str:
    """SHA-256 of `settings` and of some values of every weight of the text encoders, wherever they come from."""
    digest = hashlib.sha256(repr(settings).encode())
    for encoder in encoders:
        for name, parameter in encoder.state_dict().items():
            flat = parameter.flatten()
            chosen = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(chosen.double().cpu().numpy().tobytes())
    return digest.hexdigest()
