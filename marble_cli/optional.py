"""Import optional packages, and say how to install one that is missing."""

import importlib
from typing import Any

from marble_cli.errors import RequestError

# The extra of marble-cli that brings a package.
EXTRAS = {"bitsandbytes": "small", "torchao": "small", "imageio_ffmpeg": "video"}


def require(package: str, key: str) -> Any:
    """Import an optional package that the setting `key` needs.

    Raises:
        RequestError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = "not installed" if isinstance(error, ModuleNotFoundError) else f"unusable here: {error}"
        raise RequestError(
            f"{key} needs {package}, which is {reason}. "
            f"Install it: pip install 'marble-cli[{EXTRAS[package]}]'"
        ) from error
