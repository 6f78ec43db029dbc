"""The formats of `marble export`."""

from enum import Enum


class ExportFormat(Enum):
    diffusers = "diffusers"
    peft = "peft"
    comfyui = "comfyui"
