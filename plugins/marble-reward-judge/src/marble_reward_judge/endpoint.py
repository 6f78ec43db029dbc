"""Check a server's address, its key and further keys of requests, before anything is sent."""

import json
import os
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx


def address(base_url: str) -> tuple[str, tuple[str, str] | None]:
    """Split `base_url` into an address without a final slash, and user and password if it has them.

    Raises:
        ValueError: this is no HTTP address.
    """
    expected = "expected an address such as http://127.0.0.1:8000/v1"
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url is no address ({error}): {expected}") from None
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 65536:
        raise ValueError(f"base_url={base_url!r}: {expected}")
    if not url.userinfo:
        return base_url.rstrip("/"), None
    return str(url.copy_with(userinfo=b"")).rstrip("/"), (url.username, url.password)


def key(variable: str) -> str:
    """Return the key in an environment variable.

    Raises:
        ValueError: the variable is not set, or no header can hold its value. The message does not show the
            value.
    """
    value = os.environ.get(variable, "")
    where = f"the environment variable {variable}, which api_key_env names,"
    if not value:
        raise ValueError(f"{where} is not set")
    if value != value.strip():
        fault = "begins or ends with white space or a line end"
    elif any(letter.isspace() for letter in value):
        fault = "has white space or a line end inside"
    elif not value.isascii():
        fault = "has letters that are not ASCII"
    elif not value.isprintable():
        fault = "has control characters"
    else:
        return value
    raise ValueError(
        f"{where} {fault}: expected a key of printable ASCII characters. Its value is not shown; set it again"
    )


def extras(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the further keys of a request as a plain dictionary.

    Raises:
        ValueError: JSON cannot hold them, or the judge itself sets one of them.
    """
    if taken := body.keys() & {"messages", "stream", "n"}:
        raise ValueError(f"extra_body.{min(taken)}: the judge decides that itself")
    try:
        json.dumps(plain := dict(body))
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra_body cannot be sent as JSON: {error}") from error
    return plain


def is_here(url: str) -> bool:
    """Tell whether a URL leads to this machine."""
    host = (urlsplit(url).hostname or "").partition("%")[0].rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        number = ip_address(host)
    except ValueError:
        return False
    number = getattr(number, "ipv4_mapped", None) or number
    return number.is_loopback or number.is_unspecified
