"""Read the processors of pipelines whose text encoder sees pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Qwen2VLProcessor

from marble_cli.config.schema import ModelConfig

NAME = "processor"  # of the component in model_index.json


class PictureProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen's processor of texts and pictures without its part for videos, which would need torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)


def read_processors(model: ModelConfig, folder: Path | None, index: Mapping[str, Any]) -> dict[str, Any]:
    """Read the processor of a pipeline, by its name; nothing if the pipeline has none.

    Args:
        model: the configuration of the model.
        folder: the pipeline's folder; None if it is on the hub.
        index: the content of its model_index.json.

    Raises:
        OSError: it cannot be read.
        ValueError: as before.
    """
    if index.get(NAME, [None])[0] is None:
        return {}
    if folder is not None and not (folder / NAME).is_dir():
        raise ValueError(f"{folder / NAME} is missing, which holds a processor ({index[NAME][1]})")
    path = str(folder or model.path)
    return {NAME: PictureProcessor.from_pretrained(path, subfolder=NAME, revision=model.revision)}
