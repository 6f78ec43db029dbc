"""Define `VideoFamily`, what families add whose models draw videos."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

from marble_cli.policy.base import Family


class VideoFamily(Family, Protocol):
    """A family whose latents are [B, C, F', H, W] and whose `decode` gives frames [B, F, 3, H, W]."""

    frames: int  # of a video
    fps: int  # frames per second of a video
    frames_decoded_at_once: int  # of those that the VAE decodes one after the other

    @staticmethod
    def frames_per_latent(vae: Mapping[str, Any]) -> int:
        """Return the frames that a latent spans, from the VAE's configuration; the first one is alone."""
        ...


def as_video(family: Any) -> VideoFamily | None:
    """Return the family, or its class, if its models draw videos."""
    return cast(VideoFamily, family) if hasattr(family, "frames_per_latent") else None
