"""Define what a reward plugin is. This module imports nothing heavy, and plugins need not import it.

A reward is a class whose instances are called with a batch, or a function of a batch. The class is built
once, with keyword arguments: `device`, `dtype` and the options under `rewards.<name>`. `device` and `dtype`
are passed only if the constructor takes them; an option that it does not take is an error. A batch is

    images      uint8 [B, 3, H, W], on the CPU
    prompts     B strings
    metadata    B mappings: the other columns of each prompt's row in the prompt file
    conditions  uint8 [B, 3, H, W] on the CPU, the pictures that the images were edited from, of their size;
                None with a model that starts from no picture
    references  B lists of uint8 [3, h, w] on the CPU, all pictures that each image was edited from, in the
                order of its row; several keep their own shapes. None with a model that starts from no picture
    frames      uint8 [B, F, 3, H, W] on the CPU, videos, of which `images` are then the frames in the middle;
                None with a model that draws pictures

The answer is B floats as a tensor, array or list. Higher is better, and NaN says that the reward does not
apply. In a list, an exception in the place of a float says that the reward failed on that image alone, and
why; infinity also says that it failed, without a reason. If the reward raises, it has failed on the whole
batch, and is called again. Parameters named `images`, `prompts`, `metadata`, `conditions`, `references` and
`frames` are passed by name, in any selection and order. A callable with one parameter of another name is
given the whole `Batch`, and one with three of other names, in this order, the first three. A reward whose
parameter `conditions` or `references` has no default applies only to images that were edited from pictures,
and one whose parameter `frames` has none only to videos. A reward that takes `conditions` and no `references`
does not apply to images that were edited from several; to one that takes both, `conditions` is None where an
image of the batch was. A reward without a parameter `frames` is one of pictures: it is asked about single
frames of a video, by `rewards.<name>.frames`.

A reward may declare, as attributes of the class or function:

    requires    metadata keys that a prompt must have for the reward to apply; the reward is never called with
                other prompts. A mapping also gives types: with {"text": str}, a picture whose prompt has
                another type under that key has failed, and the message names its prompt. {"text": str | None}
                is a key that may be missing. `marble_cli.rewards.kinds` lists the types, e.g. [{"class": str,
                "count": int}].
    range       (low, high): the bounds of the scores, None for no bound. With `aspects`, a mapping may give
                each aspect its own bounds
    license     of the plugin and of the weights that it loads
    citation    the paper or repository to cite
    aspects     names of several scores that one call gives: the answer is then a mapping from each name to B
                floats. `rewards.judge.aspects=[alignment,style]` makes the aspects rewards of their own,
                `judge.alignment` and `judge.style`. An exception in the place of an aspect's B floats says
                that this aspect failed on all of these images. A class whose constructor takes `aspects` is
                given those that the configuration names; if it declares none, it has these.
    examples    pairs of samples, the first of which must score higher than the second, or a function that
                returns them; with `aspects`, a mapping from aspects to pairs. A sample is (picture, prompt),
                (picture, prompt, metadata) or (picture, prompt, metadata, condition); a picture is a PIL
                image, uint8 [H, W, 3] as an array or [3, H, W] as a tensor, or a file beside the module.
                `marble rewards check` checks the order.
    groupwise   true if the reward must see all images of a prompt in one call; it may have several prompts
    loads       options that name a model which the reward loads onto its device: a folder or hub repository
                with model.safetensors. Each comes with the numbers of parameters of published models, so that
                a plan knows their memory before they are fetched: {"model":
                {"openai/clip-vit-large-patch14": 427_616_513}}. {} says that it loads nothing there.
"""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from marble_cli.errors import RewardError
from marble_cli.rewards.batch import Batch as Batch  # plugins import it from here
from marble_cli.rewards.kinds import Kind, normal, optional

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class Declaration:
    """The attributes that a plugin declares; see this module's docstring."""

    summary: str = ""
    requires: tuple[str, ...] = ()
    range: Bounds = (None, None)
    license: str = ""
    citation: str = ""
    groupwise: bool = False
    # Of metadata values, as `kinds.normal` returns them.
    types: Mapping[str, Kind] = field(default_factory=dict)
    loads: Mapping[str, Mapping[str, int]] | None = None  # None: not declared
    aspects: tuple[str, ...] = ()
    ranges: Mapping[str, Bounds] = field(default_factory=dict)  # of aspects whose bounds differ from `range`
    takes_conditions: bool = False  # whether it may look at `Batch.conditions`
    needs_conditions: bool = False  # whether it applies only to images with conditions
    takes_references: bool = False  # whether it may look at `Batch.references`
    takes_frames: bool = False  # whether it looks at `Batch.frames`
    needs_frames: bool = False  # whether it applies only to videos

    @classmethod
    def of(cls, plugin: Any, chosen: Sequence[str] = ()) -> "Declaration":
        """Read the attributes of a plugin's class, instance or function.

        Args:
            plugin: the class, its instance or the function.
            chosen: aspects that its constructor is given, which it has if it declares none.

        Raises:
            RewardError: an attribute is malformed.
        """

        def attribute(name: str) -> Any:
            value = getattr(plugin, name, None)
            return None if inspect.isdatadescriptor(value) else value  # a class's slot or property

        requires, types = required_types(attribute("requires"))
        aspects = declared_aspects(attribute("aspects")) or tuple(chosen)
        bounds = attribute("range")
        each = bounds if isinstance(bounds, Mapping) else {}
        ranges = {str(name): declared_bounds(own) for name, own in each.items()}
        if unknown := [name for name in ranges if name not in aspects]:
            raise RewardError(
                f"`range` names {unknown[0]!r}. Expected some of its `aspects` {list(aspects)}."
            )
        lines = (plugin.__doc__ or "").strip().splitlines()
        return cls(
            lines[0] if lines else "",
            requires,
            declared_bounds(None if each is bounds else bounds),
            declared_text("license", attribute("license")),
            declared_text("citation", attribute("citation")),
            bool(attribute("groupwise")),
            types,
            loaded_models(attribute("loads")),
            aspects,
            ranges,
            **_optional_parts(plugin),
        )

    def compares(self, pictures: int) -> bool:
        """Return whether the reward may apply to images that were edited from this number of pictures."""
        if pictures > 1:
            return self.takes_references or not self.takes_conditions
        return pictures == 1 or not self.needs_conditions

    def bounds(self, aspect: str) -> Bounds:
        """Return the bounds of an aspect's scores; the empty name is the only score of a reward without."""
        return self.ranges.get(aspect, self.range)


ANYTHING = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
FIELDS = (*Batch._fields, "conditions", "references", "frames")  # parameters that are passed by name


def call_parameters(plugin: Any) -> list[inspect.Parameter]:
    """Return the parameters with which a reward is called.

    Args:
        plugin: a function, an instance or a class, whose instances are called.

    Raises:
        TypeError, ValueError: it has no signature.
    """
    is_class = inspect.isclass(plugin)

    def parameters(call: Callable[..., Any]) -> list[inspect.Parameter]:
        return [*inspect.signature(call).parameters.values()][is_class:]

    found, forward = parameters(plugin.__call__ if is_class else plugin), getattr(plugin, "forward", None)
    if forward and {parameter.kind for parameter in found} == ANYTHING:  # torch.nn.Module calls its forward
        found = parameters(forward)
    return found


def without_default(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return the parameters that a call must give."""
    return [p for p in parameters if p.default is inspect.Parameter.empty and p.kind not in ANYTHING]


def _optional_parts(plugin: Any) -> dict[str, bool]:
    """Return what a plugin takes and needs of a batch's optional parts, by a declaration's names."""
    try:
        taken = call_parameters(plugin)
    except (TypeError, ValueError):  # `bind` says what is wrong
        return {}
    names = {parameter.name for parameter in taken if parameter.kind not in ANYTHING}
    needed = {parameter.name for parameter in without_default(taken)}
    whole, pictures = len(needed) == 1 and not needed & {*FIELDS}, {"conditions", "references"}
    return {
        "takes_conditions": whole or bool(names & pictures),
        "needs_conditions": bool(needed & pictures),
        "takes_references": whole or "references" in names,
        "takes_frames": "frames" in names,
        "needs_frames": "frames" in needed,
    }


def required_types(requires: Any) -> tuple[tuple[str, ...], dict[str, Kind]]:
    """Split the value of `requires` into the keys that a prompt must have and the types of keys.

    Args:
        requires: a key, several keys, a mapping from keys to types, or None.

    Raises:
        RewardError: it is none of these.
    """
    if isinstance(requires, str):
        return (requires,), {}
    if isinstance(requires, Mapping):
        types = {str(key): normal(kind) for key, kind in requires.items()}
        return tuple(key for key, kind in types.items() if not optional(kind)), types
    try:
        keys = tuple(requires or ())
    except TypeError:
        keys = (requires,)
    if not all(isinstance(key, str) for key in keys):
        raise RewardError(
            f'`requires` is {requires!r}. Expected metadata keys, or types by key: {{"text": str}}.'
        )
    return keys, {}


def declared_aspects(aspects: Any) -> tuple[str, ...]:
    """Check the value of `aspects`; an empty tuple if the reward declares none.

    Raises:
        RewardError: it is no sequence of different names.
    """
    names = tuple(aspects) if isinstance(aspects, list | tuple) else () if aspects is None else (aspects,)
    valid = all(isinstance(name, str) for name in names) and not isinstance(aspects, str)
    if not valid or len(set(names)) < len(names):
        raise RewardError(f'`aspects` is {aspects!r}. Expected different names: ("alignment", "style").')
    return names


def declared_text(name: str, text: Any) -> str:
    """Check the value of the attribute `name`; empty if the reward declares none.

    Raises:
        RewardError: it is no text.
    """
    if not isinstance(text, str | None):
        raise RewardError(f"`{name}` is {text!r}. Expected text.")
    return text or ""


def declared_bounds(bounds: Any) -> Bounds:
    """Check the bounds of scores; None bounds nothing.

    Raises:
        RewardError: they are no pair of numbers or None, in order.
    """
    if bounds is None:
        return None, None
    numbers = isinstance(bounds, list | tuple) and all(isinstance(bound, Real | None) for bound in bounds)
    if not numbers or len(bounds) != 2 or (None not in bounds and bounds[0] > bounds[1]):
        raise RewardError(
            f"`range` is {bounds!r}. Expected the lowest and the highest score, or None: (0.0, 1.0)."
        )
    try:
        low, high = (None if bound is None else float(bound) for bound in bounds)
    except OverflowError as error:
        raise RewardError(
            f"`range` is {bounds!r}. Expected numbers that fit into a float, or None."
        ) from error
    return low, high


def loaded_models(models: Any) -> dict[str, dict[str, int]] | None:
    """Check the value of `loads`; None if the reward declares none.

    Raises:
        RewardError: it is no mapping from options to mappings from models to whole numbers.
    """
    if models is None:
        return None
    try:
        return {
            str(option): {str(name): operator.index(count) for name, count in known.items()}
            for option, known in models.items()
        }
    except (AttributeError, TypeError) as error:
        raise RewardError(
            f"`loads` is {models!r}. Expected options that name a model, with the parameters of published "
            'ones: {"model": {"openai/clip-vit-large-patch14": 427_616_513}}.'
        ) from error
