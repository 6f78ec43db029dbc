"""Drop notices of the model libraries that concern no user of marble.

diffusers imports torchao and bitsandbytes wherever they are installed, and these tell of kernels that they
could not load, although only some devices have them.
"""

import logging
from functools import partial

NOTICES = {  # by logger, the beginning or a part of the message
    "transformers.utils.import_utils": "requires torchvision (not installed); falling back to",
    "torchao": "Failed to load ",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}


def drop_notices() -> None:
    """Add a filter to the logger of each notice; call this before diffusers is imported."""
    for logger, text in NOTICES.items():
        logging.getLogger(logger).addFilter(partial(_is_other, text))


def _is_other(text: str, record: logging.LogRecord) -> bool:
    return text not in str(record.msg)
