"""Say in one line what Hydra or OmegaConf refused."""

import re
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from marble_cli.suggest import nearest

EXPECTED = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
EXPECTED |= {"int": EXPECTED["Integer"], "float": EXPECTED["Float"]}
WRONG_TYPE = re.compile(
    r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)", re.DOTALL
)
NO_NULL = re.compile(r"Incompatible value 'None' for field of type '(\w+)|field '.*' is not Optional")
NO_VARIABLE = re.compile(r".*Environment variable '(.*)' not found", re.DOTALL)
NO_KEY = re.compile(r"Interpolation key '(.*)' not found")
WRONG_CHOICE = re.compile(r"Invalid value '(.*)', expected one of \[(.*)\]", re.DOTALL)


def describe_error(error: Exception) -> str:
    """Join the lines of a Hydra error into one, the cause first."""
    text = str(error).strip()
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{str(error.__cause__).splitlines()[0]} ({text})"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def describe_value(error: OmegaConfBaseException, prefix: str = "") -> str:
    """Return the key below `prefix` whose value has the wrong type, and why, in one line."""
    text = str(error).splitlines()[0]
    key = getattr(error, "full_key", None)
    if key and (found := WRONG_TYPE.match(text)) and found[2] in EXPECTED:
        return f"{prefix}{key}={found[1]}: expected {EXPECTED[found[2]]}."
    if key and (found := WRONG_CHOICE.match(text)):
        return f"{prefix}{key}={found[1]}: there is no such choice{nearest(found[1], found[2].split(', '))}"
    if key and (found := NO_NULL.match(text)):
        return f"{prefix}{key}=null: expected {EXPECTED.get(found[1], 'a value')}."
    if "is not a ListConfig" in text:
        text = "expected a list, such as [a,b]."
    elif "'Union[int, str]'" in text or "'Optional[Union[int, str]]'" in text:
        text = f"{text.partition(' is incompatible')[0]}: expected a whole number, or WIDTHxHEIGHT."
    return f"{prefix}{key}: {text}" if key else text


def unresolved(tree: Any, path: str = "") -> str | None:
    """Return the first key of a tree whose reference leads nowhere, and why, in one line."""
    written: Any = OmegaConf.to_container(tree)
    for part in written if isinstance(written, dict) else range(len(written)):
        key = f"{path}.{part}".lstrip(".") if isinstance(written, dict) else f"{path}[{part}]"
        try:
            value = tree[part]
        except MissingMandatoryValue:
            continue
        except InterpolationResolutionError as error:
            return f"{key}={written[part]}: {_why_unresolved(error)}"
        if OmegaConf.is_config(value) and (found := unresolved(value, key)):
            return found
    return None


def _why_unresolved(error: OmegaConfBaseException) -> str:
    text = str(error).splitlines()[0]
    if found := NO_VARIABLE.match(text):
        name = found[1]
        return f"there is no environment variable {name}. Set it, or give a default: ${{oc.env:{name},VALUE}}"
    if found := NO_KEY.match(text):
        return f"there is no key {found[1]!r} that it could take its value from."
    return f"{text}."
