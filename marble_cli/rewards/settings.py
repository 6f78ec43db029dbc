"""List the settings of the process and of its threads that the guard restores after a plugin's work.

Plugins may change, and the guard neither reads nor restores: sys.path and imported modules, which a plugin
may need later; environment variables of libraries (HF_HOME, TOKENIZERS_PARALLELISM, ...); filters that
silence warnings; resource limits.
"""

import gc
import locale
import logging
import operator
import os
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic

RUN_VARIABLES = (  # prefixes of environment variables that concern the run
    *("MARBLE_", "WANDB_", "SLURM_", "MASTER_", "TORCHELASTIC_"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)
LIBRARIES: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)
BACKENDS: tuple[Any, ...] = (
    torch.backends,
    torch.backends.cuda.matmul,
    *(part for library in LIBRARIES for part in (library, library.conv, library.rnn)),
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)


@dataclass(frozen=True)
class Setting:
    """A setting with a name for messages, functions to read and write it, and a comparison of values."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    same: Callable[[Any, Any], bool] = operator.eq


def _attributes(owner: Any, *keys: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Return functions that read and write several attributes of `owner` at once."""

    def read() -> Any:
        return tuple(getattr(owner, key) for key in keys)

    def write(values: Any) -> None:
        for key, value in zip(keys, values, strict=True):
            setattr(owner, key, value)

    return read, write


def _read_precision() -> Any:
    """Return torch's older settings, None if they cannot express the newer ones, and the newer ones."""
    older: list[Any] = []
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            older.append(read())
        except RuntimeError:
            older.append(None)
    return older, [backend.fp32_precision for backend in BACKENDS]


def _write_precision(value: Any) -> None:
    (matmul_precision, allow_tf32), newer = value
    if matmul_precision is not None:
        torch.set_float32_matmul_precision(matmul_precision)
    if allow_tf32 is not None:
        torch.backends.cudnn.allow_tf32 = allow_tf32
    for backend, precision in zip(BACKENDS, newer, strict=True):
        backend.fp32_precision = precision


def _read_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return None


def _write_directory(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _read_algorithms() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _read_anomalies() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


# Settings of the process, whichever thread changes them. Rewards are called while the main thread trains, so
# settings that its libraries change for a moment, such as the attention kernels, must not be in this list.
PROCESS = (
    Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting(
        "deterministic algorithms",
        _read_algorithms,
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    Setting(
        "cuDNN's settings",
        *_attributes(torch.backends.cudnn, "enabled", "benchmark", "deterministic", "benchmark_limit"),
    ),
    Setting("oneDNN's settings", *_attributes(torch.backends.mkldnn, "enabled", "deterministic")),
    Setting(
        "the fast path of attention",
        torch.backends.mha.get_fastpath_enabled,
        torch.backends.mha.set_fastpath_enabled,
    ),
    Setting(
        "the filling of new memory", *_attributes(torch.utils.deterministic, "fill_uninitialized_memory")
    ),
    Setting("the precision of float32 products", _read_precision, _write_precision),
    Setting(
        "the precision of sums in half precision",
        *_attributes(
            torch.backends.cuda.matmul,
            "allow_fp16_reduced_precision_reduction",
            "allow_bf16_reduced_precision_reduction",
        ),
    ),
    Setting(
        "autograd's search for anomalies",
        _read_anomalies,
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    Setting("the working directory", _read_directory, _write_directory),
    Setting(
        "the level up to which logging is off",
        lambda: logging.root.manager.disable,
        lambda level: logging.disable(level),
    ),
    Setting("the timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
)


def _read_autocast() -> Any:
    return tuple(
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")
    )


def _write_autocast(rows: Any) -> None:
    for kind, enabled, dtype in rows:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def _read_device() -> torch.device | None:
    try:
        return torch.get_default_device()
    except (AssertionError, RuntimeError):  # a device of a kind that this machine lacks
        return None


def _read_gpu() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _leave_modes(count: int) -> None:
    while torch._C._len_torch_function_stack() > count:
        torch._C._pop_torch_function_stack()


def _flushes_denormals() -> bool:
    smallest = sys.float_info.min
    return smallest / 2 == 0.0


# Settings of each thread.
THREAD = (
    Setting("gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    # The guard's context ends it.
    Setting("inference mode", torch.is_inference_mode_enabled, lambda mode: None),
    Setting("autocast", _read_autocast, _write_autocast),
    Setting("autocast's cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    Setting(
        "the default device",
        _read_device,
        lambda device: torch.set_default_device(None if device == torch.device("cpu") else device),
    ),
    # After the default device, which is such a mode too.
    Setting("the modes of torch's functions", torch._C._len_torch_function_stack, _leave_modes),
    Setting("the current GPU", _read_gpu, torch.cuda.set_device, lambda before, now: before in (None, now)),
    Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting("the flushing of denormal numbers", _flushes_denormals, torch.set_flush_denormal),
    Setting("numpy's treatment of errors", np.geterr, lambda errors: np.seterr(**errors)),
)


def _read_environ() -> dict[str, str]:
    return {key: value for key, value in sorted(os.environ.items()) if key.startswith(RUN_VARIABLES)}


def _write_environ(before: dict[str, str]) -> None:
    for key in _read_environ().keys() - before.keys():
        del os.environ[key]
    os.environ.update(before)


def _read_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _loggers() -> list[logging.Logger]:
    names = logging.root.manager.loggerDict  # thousands, at every call of a reward
    ours = sorted(name for name in names if name == "marble" or name.startswith("marble."))
    return [logging.root, *map(logging.getLogger, ours)]


def _read_logging() -> Any:
    return {
        logger.name: (logger.level, logger.disabled, logger.propagate, tuple(logger.handlers))
        for logger in _loggers()
    }


def _write_logging(before: Any) -> None:
    for name, (level, disabled, propagate, handlers) in before.items():
        logger = logging.getLogger(None if name == "root" else name)
        logger.setLevel(level)
        logger.disabled, logger.propagate, logger.handlers[:] = disabled, propagate, handlers


def _same_filters(before: list[Any], now: list[Any]) -> bool:
    """Tell whether filters are the same except for new ones that do not turn warnings into errors."""
    return [row for row in now if row[0] == "error" or row in before] == before


def _write_filters(before: list[Any]) -> None:
    new = [row for row in warnings.filters if row[0] != "error" and row not in before]
    warnings.filters[:] = new + before  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


KERNELS = ("flash", "mem_efficient", "math", "cudnn")


def _read_kernels() -> tuple[bool, ...]:
    return tuple(getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")() for kernel in KERNELS)


def _write_kernels(values: tuple[bool, ...]) -> None:
    for kernel, value in zip(KERNELS, values, strict=True):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(value)


# Settings of the process that are only guarded while nothing else runs: at import and build in the main
# thread.
QUIET = (
    Setting("the attention kernels", _read_kernels, _write_kernels),
    Setting("the environment variables of the run", _read_environ, _write_environ),
    Setting("the mask of new files' rights", _read_umask, os.umask),
    Setting("the run's loggers, or the root logger", _read_logging, _write_logging),
    Setting("which warnings are errors", lambda: list(warnings.filters), _write_filters, _same_filters),
    Setting(
        "the locale",
        lambda: locale.setlocale(locale.LC_ALL),
        lambda name: locale.setlocale(locale.LC_ALL, name),
    ),
    Setting("standard error", lambda: sys.stderr, lambda stream: setattr(sys, "stderr", stream)),
    Setting("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
)
