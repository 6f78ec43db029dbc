"""Ask an OpenAI-compatible server about pictures, with bounded concurrency and retries."""

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import NoReturn

import httpx
import tenacity
from PIL import Image
from torch import Tensor

from marble_reward_judge.completion import Answer, CompletionError, read_completion
from marble_reward_judge.endpoint import address, extras, is_here, key
from marble_reward_judge.settings import ServerSettings

Pictures = Sequence[Tensor]  # of one question, uint8 [3, H, W] each
MAX_RETRY_AFTER = 60.0  # seconds; a longer Retry-After of the server is cut to this
BACK_OFF = tenacity.wait_random_exponential(multiplier=0.5, max=30.0)  # seconds
TEMPORARY = (408, 409, 425, 429)  # statuses worth another attempt, like every 5xx
# Statuses that concern every question, and the remedy.
FATAL = {
    401: "it refuses the key. Set api_key_env to the name of an environment variable that holds a valid one",
    403: "it refuses the key. Set api_key_env to the name of an environment variable that holds a valid one",
    404: "it knows no such address or model. Check base_url, which usually ends in /v1, and model",
}
# The text of a 403 that concerns one question, not the key.
MODERATED = re.compile("moderat|flagged", re.IGNORECASE)


class ServerError(Exception):
    """The server did not answer a question: it is unreachable or busy, or its answer is of no use."""


class _TemporaryError(ServerError):
    """A failure worth another attempt, `retry_after` seconds later if the server says so."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _QuestionError(ServerError):
    """A failure of one question that another attempt would not mend."""


class ChatServer:
    """A model behind `<base_url>/chat/completions`."""

    def __init__(self, settings: ServerSettings) -> None:
        """Check and keep the settings; nothing is sent.

        Raises:
            ValueError: a setting is invalid, or the variable with the key is not set or holds no key.
        """
        base, self.auth = address(settings.base_url)
        self.url = f"{base}/chat/completions"
        if self.auth and settings.api_key_env:
            raise ValueError("base_url holds a user and api_key_env names a key: expected one of them")
        for name in ("concurrency", "attempts", "max_tokens"):
            value = getattr(settings, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected a whole number from 1 on")
        variable = settings.api_key_env
        self.headers = {"Authorization": f"Bearer {key(variable)}"} if variable else {}
        chosen = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        sent = {name: value for name, value in chosen.items() if value is not None}
        self.settings = {"model": settings.model, **sent, **extras(settings.extra_body or {})}
        self.concurrency, self.timeout = settings.concurrency, settings.request_timeout
        self.attempts = settings.attempts
        self.accepted = False  # whether the server has answered a question, with this key

    def ask(self, pictures: Sequence[Pictures], questions: Sequence[str]) -> list[Answer | ServerError]:
        """Ask questions, each about one or several pictures.

        Args:
            pictures: of each question, uint8 [3, H, W] each; sent before it as PNG, which loses nothing.
            questions: as many.

        Returns:
            Answers in their order; an error takes the place of an answer that could not be had.

        Raises:
            ServerError: the server refuses the key, or knows no such model or address. This concerns every
                picture.
        """
        try:
            return asyncio.run(self._ask_all(pictures, questions))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _ask_all(
        self, pictures: Sequence[Pictures], questions: Sequence[str]
    ) -> list[Answer | ServerError]:
        places = asyncio.Semaphore(self.concurrency)
        async with self._client() as client, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._ask(client, places, seen, question))
                for seen, question in zip(pictures, questions, strict=True)
            ]
        return [task.result() for task in tasks]

    def _client(self) -> httpx.AsyncClient:
        """Return a client for a batch; it uses the environment's proxies, except for servers on this machine.

        Raises:
            ServerError: a proxy that the environment names cannot be used.
        """
        try:
            return httpx.AsyncClient(
                headers=self.headers,
                auth=self.auth,
                timeout=self.timeout,
                limits=httpx.Limits(max_connections=self.concurrency),
                trust_env=not is_here(self.url),
            )
        except (httpx.InvalidURL, ImportError, ValueError) as error:
            raise ServerError(
                f"{self.url} cannot be asked: {error}. "
                "Check the environment variables of proxies, such as HTTPS_PROXY."
            ) from error

    async def _ask(
        self, client: httpx.AsyncClient, places: asyncio.Semaphore, seen: Pictures, question: str
    ) -> Answer | ServerError:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=_seconds_to_wait,
            retry=tenacity.retry_if_exception_type(_TemporaryError),
            reraise=True,
        )
        try:
            return await retrying(self._request, client, places, seen, question)
        except _TemporaryError as error:
            return ServerError(f"{error} ({self.attempts} attempts)")
        except _QuestionError as error:
            return ServerError(str(error))

    async def _request(
        self, client: httpx.AsyncClient, places: asyncio.Semaphore, seen: Pictures, question: str
    ) -> Answer:
        async with places:
            parts = [
                *({"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in seen),
                {"type": "text", "text": question},
            ]
            body = {**self.settings, "messages": [{"role": "user", "content": parts}]}
            try:
                response = await client.post(self.url, json=body)
            except httpx.TimeoutException as error:
                raise _TemporaryError(f"{self.url} did not answer within {self.timeout:g} s") from error
            except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as error:
                kind = _QuestionError if _is_distrusted(error) else _TemporaryError
                raise kind(f"{self.url} cannot be reached: {str(error) or repr(error)}") from error
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                # A ValueError is of the prompt: JSON cannot hold it.
                raise _QuestionError(f"{self.url}: {type(error).__name__}: {error}") from error
        return self._read(response)

    def _read(self, response: httpx.Response) -> Answer:
        message = f"{self.url} answered {response.status_code}: {response.text[:200]!r}"
        if response.is_redirect:
            location = response.headers.get("Location")
            message += f", which leads to {location!r}. Set base_url to where it leads"
        if response.status_code != 200:
            self._raise_for_status(response.status_code, response, message)
        try:
            answer = read_completion(response.content)
        except CompletionError as error:
            if error.status is not None:
                self._raise_for_status(error.status, response, message)
            raise _QuestionError(f"{message}, {error}") from error
        self.accepted = True
        return answer

    def _raise_for_status(self, status: int, response: httpx.Response, message: str) -> NoReturn:
        """Raise the error that an unsuccessful status means.

        Raises:
            ServerError: always; of a kind that says whether another attempt or another question may succeed.
        """
        moderated = status == 403 and (self.accepted or MODERATED.search(response.text))
        if status in FATAL and not moderated:
            raise ServerError(f"{message}. {FATAL[status]}.")
        if status in TEMPORARY or status >= 500:
            raise _TemporaryError(message, _parse_retry_after(response.headers.get("Retry-After")))
        raise _QuestionError(message)


def _is_distrusted(error: BaseException | None) -> bool:
    """Tell whether a connection failed for an untrusted certificate, which another attempt would not mend."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _seconds_to_wait(state: tenacity.RetryCallState) -> float:
    """Return the seconds until the next attempt.

    These are the server's Retry-After, up to `MAX_RETRY_AFTER`, else a growing random time.
    """
    error = state.outcome.exception() if state.outcome else None
    retry_after = error.retry_after if isinstance(error, _TemporaryError) else None
    return BACK_OFF(state) if retry_after is None else min(retry_after, MAX_RETRY_AFTER)


def _parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, given as seconds or as a date; None if it is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def data_url(image: Tensor) -> str:
    """Encode an image uint8 [3, H, W] as a data URL of a PNG."""
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG", compress_level=1)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
