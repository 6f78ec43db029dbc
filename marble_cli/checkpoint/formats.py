"""The formats of `marble export`, in a module that imports nothing heavy."""

from enum import Enum


class ExportFormat(Enum):
    """The library that an exported file is for."""

    diffusers = "diffusers"
    peft = "peft"
    comfyui = "comfyui"
