"""Tell which published model a run trained, and under which license that model is."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError
from yaml import YAMLError

from marble_cli.config.embedded import WORLDS
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import RequestError
from marble_cli.policy.source import local_folder

CARD = "README.md"
CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")  # a folder of the hub's cache
KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class BaseModel:
    """The model that a LoRA belongs to.

    Attributes:
        id: its id on the hub, None if that is unknown.
        name: its name in a text.
        license: `license`, `license_name` and `license_link` of its model card, as far as that states them.
    """

    id: str | None
    name: str
    license: dict[str, str] = field(default_factory=dict)


def describe_base(model: ModelConfig) -> BaseModel:
    """Describe the model of a run; its card is read from its folder, the hub's cache or the hub."""
    if model.path in WORLDS:
        return BaseModel(None, "the embedded model of marble-cli", {"license": "apache-2.0"})
    cached = CACHED.search(model.path)
    try:
        folder = local_folder(model.path)
    except RequestError:  # moved or deleted since
        folder = Path(model.path)
    id = "/".join(cached.groups()) if cached else model.path if folder is None else None
    return BaseModel(id, id or Path(model.path).name, _license(model, folder, id))


def _license(model: ModelConfig, folder: Path | None, id: str | None) -> dict[str, str]:
    try:
        card = folder / CARD if folder else Path(hf_hub_download(model.path, CARD, revision=model.revision))
        stated = metadata_load(card) or {}
    except (
        OSError,
        HfHubHTTPError,
        ValueError,
        YAMLError,
    ):  # no card, no network, or a card without metadata
        return {}
    found = {key: str(stated[key]) for key in KEYS if stated.get(key)}
    link = found.get("license_link", "https:")
    if not link.startswith("https:"):  # a file of the base model's repository
        found.pop("license_link")
        if id is not None:
            found["license_link"] = f"https://huggingface.co/{id}/blob/main/{link}"
    return found
