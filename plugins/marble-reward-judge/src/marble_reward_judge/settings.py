"""The settings of a server, which are options of every reward that asks one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, get_args, get_origin

KINDS: dict[Any, tuple[Any, str]] = {  # by the type of an option: what it may be, and the words for it
    str: (str, "text"),
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    Mapping: (Mapping, "a mapping"),
    Sequence: (Sequence, "a list"),
}


@dataclass(repr=False, eq=False)  # base_url may hold a password
class ServerSettings:
    """An OpenAI-compatible server, and how it is asked.

    Attributes:
        base_url: its address, e.g. http://127.0.0.1:8000/v1.
        model: name of the model on the server.
        api_key_env: name of the environment variable with the key, which is written nowhere; None if the
            server needs none.
        temperature: of sampling; 0 takes the likeliest token; None leaves it to the server.
        max_tokens: largest length of an answer; None leaves it to the server.
        concurrency: largest number of simultaneous requests.
        request_timeout: seconds for one request.
        attempts: largest number of requests for one answer.
        extra_body: further keys of a request, which override those above, such as
            {"max_completion_tokens": 512}.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    temperature: float | None = 0.0
    max_tokens: int | None = 512
    concurrency: int = 16
    request_timeout: float = 60.0
    attempts: int = 4
    extra_body: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check that the options have their types.

        Raises:
            ValueError: an option has another.
        """
        for option in fields(self):
            value = getattr(self, option.name)
            kinds = get_args(option.type) if isinstance(option.type, UnionType) else (option.type,)
            accepted, words = KINDS[get_origin(kinds[0]) or kinds[0]]
            if value is None and len(kinds) > 1:
                continue
            if not isinstance(value, accepted) or isinstance(value, bool) != (accepted is bool):
                raise ValueError(f"{option.name}={value!r}: expected {words}")

    def server_options(self) -> dict[str, Any]:
        """Return these settings as keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(ServerSettings)}
