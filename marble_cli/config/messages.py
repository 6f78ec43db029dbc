"""Say in one line what Hydra or OmegaConf refused."""

from omegaconf.errors import OmegaConfBaseException


def describe_error(error: Exception) -> str:
    """Join the lines of a Hydra error into one, the cause first."""
    text = str(error).strip()
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{str(error.__cause__).splitlines()[0]} ({text})"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def describe_value(error: OmegaConfBaseException, prefix: str = "") -> str:
    """Return the key below `prefix` whose value has the wrong type, and why, in one line."""
    text = str(error).splitlines()[0]
    if "is not a ListConfig" in text:
        text = "expected a list, such as [a,b]."
    elif "'Union[int, str]'" in text or "'Optional[Union[int, str]]'" in text:
        text = f"{text.partition(' is incompatible')[0]}: expected a whole number, or WIDTHxHEIGHT."
    key = getattr(error, "full_key", None)
    return f"{prefix}{key}: {text}" if key else text
