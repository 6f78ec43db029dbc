"""Load plugins by the name of their entry point and build rewards that can be called."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from marble_cli.config import schema
from marble_cli.errors import ConfigError, RewardError
from marble_cli.plugins import installed, providers
from marble_cli.rewards.api import FIELDS, Batch, Declaration, call_parameters, without_default
from marble_cli.rewards.aspects import check_aspects
from marble_cli.rewards.device import current, numbered, on
from marble_cli.rewards.guard import Guard, Stage
from marble_cli.suggest import nearest

PASSED = {"device", "dtype", "aspects"}  # what marble itself passes to a constructor
IMPORTS: dict[str, Guard] = {}  # by the value of an entry point, because Python imports a module once
TEXT = (str, str | None, "str", "str | None", "Optional[str]")  # annotations of text, evaluated or as strings


def origin(plugin: str) -> str:
    """Return distribution and version of the entry point `plugin`, or an empty string if they are unknown."""
    entry = installed().get(plugin)
    return f"{entry.dist.name} {entry.dist.version}" if entry and entry.dist else ""


def load_plugin(plugin: str) -> Any:
    """Import the class or function that the entry point `plugin` names.

    Raises:
        ConfigError: there is no such plugin, or several distributions have one of that name.
        RewardError: it cannot be imported, or is neither a class nor a function.
    """
    known = installed()
    if plugin not in known:
        raise ConfigError(f"there is no reward {plugin!r} in this environment{nearest(plugin, known)}")
    if len(several := providers(plugin)) > 1:
        raise ConfigError(
            f"reward {plugin} is in several distributions: {', '.join(several)}. Uninstall all but one."
        )
    try:
        guard = IMPORTS.setdefault(known[plugin].value, Guard(plugin))
        loaded = guard.run(Stage.IMPORT, known[plugin].load)
    except Exception as error:  # importing a plugin may raise anything
        raise RewardError(
            f"reward {plugin} ({known[plugin].value}) cannot be imported: {type(error).__name__}: "
            f"{error}. Reinstall its distribution, or correct the name in its entry point."
        ) from error
    if not callable(loaded):
        raise RewardError(
            f"reward {plugin} ({known[plugin].value}) is of type {type(loaded).__name__}. Expected a class "
            "or a function: correct the name in its entry point."
        )
    return loaded


def parameters(plugin: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a plugin's constructor; a function has none."""
    try:
        return dict(inspect.signature(plugin).parameters) if inspect.isclass(plugin) else {}
    except ValueError:  # it is a builtin's, such as that of dict
        return {}


def check_options(
    key: str,
    plugin: Any,
    options: Mapping[str, Any],
    aspects: Sequence[str] = (),
    *,
    complete: bool = True,
) -> Declaration:
    """Check a reward's options and `aspects` against its plugin, without building anything.

    Args:
        key: the reward's dotted key, such as `rewards.ocr`.
        plugin: the class or function.
        options: keyword arguments of its constructor.
        aspects: those that the configuration names.
        complete: also refuse options that lack options without a default.

    Returns:
        The plugin's declaration.

    Raises:
        ConfigError: an option is unknown, is a number where the constructor takes text, or is missing and has
            no default; or the reward has no such aspect.
        RewardError: an attribute is malformed, or the constructor cannot do without a host key.
    """
    taken = parameters(plugin)
    declaration = Declaration.of(plugin, aspects if "aspects" in taken else ())
    check_aspects(key, aspects, declaration)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    named = {
        option: p
        for option, p in taken.items()
        if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    for option in named:
        if option in schema.HOST - PASSED and named[option].default is inspect.Parameter.empty:
            raise RewardError(
                f"the constructor of {key} needs `{option}`, but {key}.{option} is a key of marble's own. "
                "Rename the parameter."
            )
    for option in options:
        if option not in named and not open_ended:
            hint = nearest(option, {*named, *schema.HOST} - PASSED)
            raise ConfigError(f"{key}.{option}: no such option{hint}")
    for option, value in options.items():
        if option in named and named[option].annotation in TEXT and isinstance(value, (bool, int, float)):
            raise ConfigError(
                f"{key}.{option}={value}: the reward takes text there, not {type(value).__name__}. "
                f"Put the text in quotes of its own: '{key}.{option}=\"...\"'"
            )
    for option, parameter in named.items() if complete else ():
        passed = {"device", "dtype", *(["aspects"] if aspects else [])}
        if parameter.default is inspect.Parameter.empty and option not in {*options, *passed}:
            raise ConfigError(f"{key}.{option} is missing: the reward cannot be built without it.")
    return declaration


@dataclass(frozen=True)
class Reward:
    """A reward that is built and can be called; its settings are a `schema.RewardConfig`.

    `name` is that of its key. `call` must be made under `guard`. `close` releases its resources.
    `alive` turns false when the process that serves it is gone. Calls are made inside `turn`, which waits
    until other users of the same process have been served; a call may also wait for them itself, for `queue`
    seconds beside its timeout. `plugin` is the class's instance or the function, None if it is in another
    process.
    """

    name: str
    declaration: Declaration
    call: Callable[[Batch], Any]
    guard: Guard
    close: Callable[[], None] = lambda: None
    alive: Callable[[], bool] = lambda: True
    turn: Callable[[], AbstractContextManager[None]] = nullcontext
    queue: float = 0.0
    plugin: Any = None


def build(
    name: str,
    plugin: str,
    options: Mapping[str, Any],
    device: str,
    dtype: str = "float32",
    aspects: Sequence[str] = (),
    key: str | None = None,
) -> Reward:
    """Load and construct the reward `name`.

    Args:
        name: of the reward.
        plugin: its entry point.
        options: keyword arguments of its constructor.
        device: where it should compute, e.g. "cpu" or "cuda:0".
        dtype: name of the floating type that it should compute in.
        aspects: those that the configuration names, for a constructor that takes them.
        key: its dotted key, `rewards.<name>` if None.

    Raises:
        ConfigError: there is no such plugin, an option is wrong, or the constructor raises ValueError or
            OSError, for example because a file is missing.
        RewardError: the plugin cannot be imported, or its constructor raises another error.
    """
    loaded, path = load_plugin(plugin), key or f"rewards.{name}"
    check_options(path, loaded, options, aspects)
    device = numbered(options.get("device", device), device)
    guard = Guard(name, dict(IMPORTS[installed()[plugin].value].left))
    if not inspect.isclass(loaded):
        return Reward(name, Declaration.of(loaded), on(device, bind(name, loaded)), guard, plugin=loaded)
    taken = parameters(loaded)
    kinds = {p.kind for p in taken.values()}
    # A constructor of (*args, **kwargs) alone, such as torch.nn.Module's, does not tell what it takes.
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
    place = {"device": device, "dtype": _dtype(path, options.get("dtype", dtype))}
    place = {key: value for key, value in place.items() if open_ended or key in taken}
    if "aspects" in taken and aspects:
        place["aspects"] = tuple(aspects)
    # A copy: the plugin may change it, and config.yaml is written later.
    given = {**copy.deepcopy(dict(options)), **place}
    try:
        with current(device):
            instance: Any = guard.run(Stage.BUILD, lambda: loaded(**given))
    except Exception as error:
        kind = ConfigError if isinstance(error, ValueError | OSError) else RewardError
        raise kind(f"reward {name} could not be built: {type(error).__name__}: {error}") from error
    declaration = check_aspects(path, aspects, Declaration.of(instance, place.get("aspects", ())))
    return Reward(name, declaration, on(device, bind(name, instance)), guard, plugin=instance)


def _dtype(key: str, name: str) -> Any:
    import torch

    known = ("float32", "float16", "bfloat16", "float64")
    if name not in known:
        raise ConfigError(f"{key}.dtype={name}: no such type{nearest(name, known)}")
    return getattr(torch, name)


def bind(name: str, reward: Callable[..., Any]) -> Callable[[Batch], Any]:
    """Return a function of a `Batch` that passes the reward `name` the parameters it takes.

    Raises:
        RewardError: the parameters follow no form of the plugin API.
    """
    if not callable(reward):
        raise RewardError(f"reward {name} is {reward!r}. Expected a class or a function.")
    try:
        taken = call_parameters(reward)
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"reward {name} has no signature that Python knows ({error}). Let its entry point name a "
            "function in Python that calls it, such as score(images, prompts)."
        ) from error
    needed, kinds = without_default(taken), {p.kind for p in taken}
    ahead = [p.name for p in takewhile(lambda p: p.kind is p.POSITIONAL_ONLY and p.name in FIELDS, taken)]
    named = {
        p.name for p in taken if p.name in FIELDS and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds
    if all(p.name in FIELDS for p in needed) and (open_ended or ahead or named):
        if open_ended:  # conditions go only to those who name them
            named |= {*Batch._fields} - {*ahead}
        return lambda batch: reward(*_parts(batch, ahead).values(), **_parts(batch, named))
    if all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed):
        if len(needed) <= 1 and kinds - {inspect.Parameter.KEYWORD_ONLY}:
            return lambda batch: reward(batch, **_parts(batch, named))
        if len(needed) == len(Batch._fields) and all(
            p.name == field or p.name not in FIELDS for p, field in zip(needed, Batch._fields, strict=True)
        ):
            named -= {p.name for p in needed}
            return lambda batch: reward(*batch, **_parts(batch, named))
    raise RewardError(
        f"reward {name} has the parameters ({', '.join(p.name for p in taken)}). Expected some of "
        f"{', '.join(FIELDS)}; the first three, in their order, under other names; or one that takes the "
        "whole batch."
    )


def _parts(batch: Batch, fields: Iterable[str]) -> dict[str, Any]:
    """Return these parts of a batch by name; `conditions` are None if an image was edited from several."""
    return {field: getattr(batch, "single" if field == "conditions" else field) for field in fields}
