"""What `marble eval`, `generate` and `export` are pointed at: a checkpoint, a run, or the base model."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from marble_cli.checkpoint import store


@dataclass(frozen=True)
class Target:
    """A named policy: its `lora` (moving average) in diffusers' key format, None for the base model."""

    label: str
    lora: dict[str, Tensor] | None
    checkpoint: Path | None

    @property
    def config(self) -> Path | None:
        """The configuration of the run that wrote the checkpoint, where it stands in its folder."""
        if self.checkpoint is None:
            return None
        path = self.checkpoint.parent.parent / "config.yaml"
        return path if path.is_file() else None


def resolve_target(spec: str) -> Target:
    """Load what `spec` names: `base`, a checkpoint folder, or a run folder (its latest checkpoint).

    Raises:
        CheckpointError, RequestError: it names nothing, or the checkpoint is damaged.
    """
    if spec == "base":
        return Target("base", None, None)
    path = store.resolve(spec)
    _, _, ema = store.load(path)
    return Target(f"{path.parent.parent.name}/{path.name}", ema, path)
