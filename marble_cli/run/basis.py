"""Say what the scores of a run's evaluations depend on besides its weights: their basis."""

import hashlib
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from marble_cli.config.evaluation import pictured
from marble_cli.config.references import as_tree
from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.redaction import is_secret

# Keys of a reward, and of its aspects, that decide its scores; others say how it is called and trained on.
DECIDING = ("plugin", "sources", "requires", "only_if", "frames", "options")
OTHERWISE = {
    "images": "drew images differently",
    "prompts": "judged other prompts",
    "rewards": "had other rewards or options",
}


def find_basis(config: RunConfig, held_out: Sequence[Prompt]) -> dict[str, Any]:
    """Return what the scores of a run's evaluations depend on, as JSON holds it.

    Args:
        config: the configuration of the run.
        held_out: the prompts of its evaluations; their pictures are read.

    Returns:
        `images`, how they are drawn, and the SHA-256 of `prompts` and of `rewards`.

    Raises:
        DataError: a picture cannot be read.
    """
    tree = as_tree(config)
    prompts = [
        [own.text, own.metadata, own.source, own.negative, own.resolution, own.buckets]
        + [picture.digest for picture in own.images]
        for own in held_out
    ]
    rewards = {
        name: {
            **_deciding(reward),
            "aspects": {aspect: _deciding(keys) for aspect, keys in reward["aspects"].items()},
        }
        for name, reward in (tree["rewards"] | tree["eval_rewards"]).items()
    }
    return {"images": pictured(tree), "prompts": _digest(prompts), "rewards": _digest(rewards)}


def _deciding(keys: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in keys.items() if key in DECIDING}
    if "options" in kept:  # of which the device changes a score by rounding alone
        kept["options"] = {key: value for key, value in kept["options"].items() if key != "device"}
    return kept


def describe_changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say how evaluations on one basis differed from those on the basis `now`; "" if they did not."""
    return ", ".join(words for part, words in OTHERWISE.items() if before.get(part) != now[part])


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(_canonical(value)).encode(errors="surrogatepass")).hexdigest()


def _canonical(value: Any) -> Any:
    """Sort the keys of mappings, and leave out secrets, which decide no score."""
    if isinstance(value, dict):
        rows = ((str(key), part) for key, part in value.items() if not is_secret(str(key), part))
        return [(key, _canonical(part)) for key, part in sorted(rows, key=itemgetter(0))]
    if isinstance(value, list | tuple):
        return [_canonical(part) for part in value]
    return value
