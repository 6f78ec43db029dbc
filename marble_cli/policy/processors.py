"""Read the processors of pipelines whose text encoder can see pictures, without what needs torchvision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin, Qwen2VLProcessor

from marble_cli.config.schema import ModelConfig


class PictureProcessor(Qwen2VLProcessor):
    """Qwen's processor of texts and pictures without its part for videos."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)  # type: ignore[no-untyped-call]


class TextProcessor(ProcessorMixin):
    """Pixtral's processor of texts alone: FLUX.2 shows its text encoder no picture."""

    def __init__(self, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any) -> None:
        super().__init__(tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]


PROCESSORS: dict[str, type] = {  # by the class that model_index.json names
    "Qwen2VLProcessor": PictureProcessor,
    "PixtralProcessor": TextProcessor,
}


def read_processors(model: ModelConfig, folder: Path | None, index: Mapping[str, Any]) -> dict[str, Any]:
    """Read the processors of a pipeline, by their names.

    Args:
        model: the configuration of the model.
        folder: the pipeline's folder; None if it is on the hub.
        index: the content of its model_index.json.

    Raises:
        OSError: one cannot be read.
        ValueError: as before.
    """
    found = {}
    for name, kind in index.items():
        if not isinstance(kind, list) or kind[1] not in PROCESSORS:
            continue
        if folder is not None and not (folder / name).is_dir():
            raise ValueError(f"{folder / name} is missing, which holds a processor ({kind[1]})")
        reader: Any = PROCESSORS[kind[1]]
        found[name] = reader.from_pretrained(
            str(folder or model.path), subfolder=name, revision=model.revision
        )
    return found
