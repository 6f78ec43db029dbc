"""Find, fetch, hash and read the prompts of a benchmark."""

import hashlib
import itertools
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import hf_hub_download

from marble_cli.config.benchmark import PromptFilesConfig, Protocol
from marble_cli.config.schema import SourceConfig
from marble_cli.data.prompts import Prompt, read_source
from marble_cli.errors import DataError
from marble_cli.files import writing
from marble_cli.paths import expand

CACHE = "~/.cache/marble/benchmarks"
RAW = "https://raw.githubusercontent.com"
SECONDS = 60.0  # that a file of prompts may take to begin


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a benchmark.

    Attributes:
        protocol: with the change `prompts` if a file is not the one that the protocol names.
        prompts: in the order of the files.
        groups: the group of each prompt.
        sha256: of each file, by source name.
    """

    protocol: Protocol
    prompts: list[Prompt]
    groups: list[str]
    sha256: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return protocol and prompts as JSON holds them."""
        own = self.protocol.to_json()
        source = own["source"] | {"read_sha256": self.sha256}
        rows = [
            {"prompt": prompt.text, "group": group, "metadata": dict(prompt.metadata)}
            for prompt, group in zip(self.prompts, self.groups, strict=True)
        ]
        return own | {"source": source, "read": rows}


def read_prompts(protocol: Protocol) -> PromptSet:
    """Read a protocol's prompts, and fetch those that are not here.

    Raises:
        DataError: a file is missing, cannot be fetched, is empty or has bad rows.
    """
    source, name = protocol.config.source, protocol.benchmark
    prompts, sha256 = list[Prompt](), dict[str, str]()
    for part, file in source.files.items():
        path = _locate(name, source, file)
        sha256[part] = hashlib.sha256(path.read_bytes()).hexdigest()
        settings = SourceConfig(
            path.name,
            path.name,
            prompt_key=source.prompt_key,
            image_key=None,
            resolution_key=None,  # a protocol has one size
            quoted_as=source.quoted_as,
        )
        rows = read_source(path.parent, part, settings, path.name)
        if source.collect is not None:
            rows = _collect(rows, source.collect)
        prompts += rows[: protocol.config.prompts]
    if any(sha256.get(part) != expected for part, expected in source.sha256.items()):
        protocol = replace(protocol, changes=(*protocol.changes, "prompts"))
    return PromptSet(protocol, prompts, [_group(name, p, protocol.config.group) for p in prompts], sha256)


def _group(name: str, prompt: Prompt, key: str | None) -> str:
    if key is None or key == "source":
        return prompt.source
    if key not in prompt.metadata:
        raise DataError(
            f"benchmark {name}: benchmark.group={key}, and the prompt {prompt.text[:60]!r} has no such key. "
            f"Expected one of {', '.join(prompt.metadata) or 'source'}."
        )
    return str(prompt.metadata[key])


def _collect(rows: list[Prompt], key: str) -> list[Prompt]:
    """Make one prompt of neighbours whose `key` is equal; its other metadata are lists of theirs."""
    collected = []
    for _, group in itertools.groupby(rows, lambda row: row.metadata.get(key)):
        first, *others = group
        every = [first, *others]
        lists = {name: [row.metadata.get(name) for row in every] for name in first.metadata if name != key}
        collected.append(replace(first, metadata={key: first.metadata.get(key), **lists}))
    return collected


def _locate(name: str, source: PromptFilesConfig, file: str) -> Path:
    """Return the path of a file of prompts, fetched if it is not here.

    Raises:
        DataError: there is no such file, or it cannot be fetched.
    """
    repository = source.hub or source.github or ""
    if source.root is not None:
        embedded = Path(str(files("marble_cli") / "assets" / "tiny" / "prompts"))
        path = (embedded if source.root == "tiny" else Path(source.root)) / repository / file
        if not path.is_file():
            raise DataError(
                f"benchmark {name}: {path} does not exist. Expected the prompts below "
                f"benchmark.source.root={source.root}, as {Path(repository) / file}."
            )
        return path
    try:
        if source.hub is not None:
            return Path(hf_hub_download(source.hub, file, repo_type="dataset", revision=source.revision))
        return _fetch(f"{source.github}/{source.revision}/{file}")
    except (OSError, ValueError, httpx.HTTPError) as error:  # the hub's errors are OSErrors and ValueErrors
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        raise DataError(
            f"benchmark {name}: its prompts, {file} of {repository} at {source.revision}, cannot be fetched: "
            f"{reason}. Put the file at FOLDER/{repository}/{file} and set benchmark.source.root=FOLDER."
        ) from error


def _fetch(place: str) -> Path:
    """Return a file of GitHub, which is kept after the first time."""
    path = expand("", f"{CACHE}/{place}")
    if path.is_file():
        return path
    answer = httpx.get(f"{RAW}/{place}", timeout=SECONDS, follow_redirects=True)
    answer.raise_for_status()
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, "Free some space, or set benchmark.source.root."):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(answer.content)
        temporary.replace(path)
    return path
