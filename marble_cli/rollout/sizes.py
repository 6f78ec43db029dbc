"""The sizes that images may have in a run: that of the model, those that rows name, and buckets."""

from collections.abc import Iterable
from dataclasses import replace

from marble_cli.config.resolution import canonical, read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.data.prompts import Prompt
from marble_cli.errors import RequestError
from marble_cli.policy.source import (
    config_folder,
    count_image_tokens,
    explain_load_errors,
    find_family,
    model_file,
    read_json,
)


def possible_sizes(prompts: Iterable[Prompt], default: int | str) -> dict[int | str, str]:
    """Return the sizes that images of these prompts may have, each with the key or row that names it first.

    Pictures are not read, so that all buckets are possible where one has to be chosen.
    """
    named: dict[int | str, str] = {}
    for prompt in prompts:
        if prompt.resolution is not None:
            named.setdefault(prompt.resolution, f"data.sources.{prompt.source}: {prompt.where}: resolution")
        elif prompt.images and prompt.buckets:
            for bucket in prompt.buckets:
                named.setdefault(canonical(bucket), "data.aspect_ratio_buckets")
        else:
            named.setdefault(default, "model.resolution")
    return named


def largest(sizes: Iterable[int | str]) -> int | str:
    """Return the size of most pixels."""
    return max(sizes, key=lambda size: read_resolution(size).pixels)


def check_sizes(prompts: Iterable[Prompt], model: ModelConfig, *, fetch: bool) -> None:
    """Check that the model can draw images of every size that rows name, and of every bucket.

    Args:
        prompts: of any sources.
        model: the configuration group.
        fetch: whether to fetch the model's configurations; without them nothing is checked.

    Raises:
        RequestError: it cannot, and the message names the row's file and line, or the key; or there are
            buckets, and no row has a picture that could choose among them.
    """
    prompts = list(prompts)
    if any(prompt.buckets for prompt in prompts) and not any(prompt.images for prompt in prompts):
        raise RequestError(
            "data.aspect_ratio_buckets: no row has a picture, whose shape would choose among them. Expected "
            "null; without pictures, rows name their size under the key resolution."
        )
    sizes = possible_sizes(prompts, model.resolution)
    folder = config_folder(model.path)
    if sizes.keys() <= {model.resolution} or (folder is None and not fetch):
        return

    def read(name: str) -> dict[str, object]:
        return read_json(folder / name if folder else model_file(model, name))

    with explain_load_errors(model):
        family = find_family(model, read("model_index.json"))
        vae, network = read("vae/config.json"), read(f"{family.network}/config.json")
    for size, where in sizes.items():
        count_image_tokens(replace(model, resolution=size), family, vae, network, where)
