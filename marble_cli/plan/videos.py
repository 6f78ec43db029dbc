"""Describe what the videos of a run take besides the network's passes."""

from marble_cli.config.counts import geometry, per_process, processes
from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import RunConfig
from marble_cli.plan.memory import describe_bytes
from marble_cli.policy.model_size import ModelSize


def describe_videos(config: RunConfig, size: ModelSize) -> str | None:
    """Describe the frames of a step's videos and the work of decoding them; None for a model of pictures.

    A process keeps the frames of its videos in the CPU's memory until the step ends.
    """
    frames = config.model.frames
    if frames is None or size.count_decoding is None:
        return None
    own = per_process(geometry(config).images, processes(config.launcher))
    kept = own * frames * 3 * read_resolution(config.model.resolution).pixels
    decoding, forward = (
        f"{float(f'{flop / 1e12:.2g}'):g}" for flop in (size.count_decoding(), size.cost.forward)
    )
    return (
        f"{frames} frames each, {describe_bytes(kept)} of the CPU's memory per process; to decode one takes "
        f"{decoding} TFLOP, a forward pass {forward}"
    )
