"""Ask an OpenAI-compatible server about pictures: many at once but never too many, tried again where that may help."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any, NoReturn

import httpx
import tenacity
from PIL import Image
from torch import Tensor

from marble_reward_judge.completion import Answer, CompletionError, read_completion
from marble_reward_judge.endpoint import address, extras, is_here, key

PATIENCE = 60.0  # seconds that a server may ask for before a further attempt
BACK_OFF = tenacity.wait_random_exponential(multiplier=0.5, max=30.0)  # seconds
BUSY = (408, 409, 425, 429)  # statuses that may pass, beside 5xx
FOR_ALL = {
    401: "it refuses the key. Set api_key_env to the name of an environment variable that holds a valid one",
    403: "it refuses the key. Set api_key_env to the name of an environment variable that holds a valid one",
    404: "it knows no such address or model. Check base_url, which mostly ends in /v1, and model",
}


class ServerError(Exception):
    """The server's fault in answering one question: it is not reached, is busy, or answers with nothing of use."""


class _PassingError(ServerError):
    """A fault that may pass; `pause` is how long the server asks to be left alone, in seconds."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class _OneQuestionError(ServerError):
    """A fault of one question, which asking again does not mend."""


class ChatServer:
    """A model behind `<base_url>/chat/completions`."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None,
        temperature: float | None,
        max_tokens: int | None,
        concurrency: int,
        request_timeout: float,
        attempts: int,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Note how to reach it; nothing is sent.

        Args:
            base_url: its address, e.g. http://127.0.0.1:8000/v1.
            model: the name under which it serves the model.
            api_key_env: name of the environment variable that holds the key; None if it asks for none.
            temperature: of sampling; 0 takes the likeliest word; None is not sent.
            max_tokens: length of an answer at most; None is not sent.
            concurrency: requests under way at a time.
            request_timeout: seconds for one request.
            attempts: requests for one answer at most.
            extra_body: further keys of a request, which count before those above.

        Raises:
            ValueError: an argument is of no use, or the variable with the key is not set or holds no key.
        """
        base, self.auth = address(base_url)
        self.url = f"{base}/chat/completions"
        if self.auth and api_key_env:
            raise ValueError("base_url holds a user and api_key_env names a key: expected one of them")
        for name, value in {
            "concurrency": concurrency,
            "attempts": attempts,
            "max_tokens": max_tokens,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected a whole number from 1 on")
        self.headers = {"Authorization": f"Bearer {key(api_key_env)}"} if api_key_env else {}
        chosen = {"temperature": temperature, "max_tokens": max_tokens}
        sent = {name: value for name, value in chosen.items() if value is not None}
        self.settings = {"model": model, **sent, **extras(extra_body or {})}
        self.concurrency, self.timeout, self.attempts = concurrency, request_timeout, attempts

    def ask(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[Answer | ServerError]:
        """One answer a picture, in their order; where there is none, the error that says why.

        Args:
            images: uint8 [3, H, W] each; sent as PNG, so that nothing is lost.
            questions: one for each.

        Raises:
            ServerError: the server refuses the key, or knows no such model or address: that concerns every picture.
        """
        try:
            return asyncio.run(self._ask_all(images, questions))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _ask_all(
        self, images: Sequence[Tensor], questions: Sequence[str]
    ) -> list[Answer | ServerError]:
        places = asyncio.Semaphore(self.concurrency)
        async with self._client() as client, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._ask(client, places, image, question))
                for image, question in zip(images, questions, strict=True)
            ]
        return [task.result() for task in tasks]

    def _client(self) -> httpx.AsyncClient:
        """Return a client for a batch; it uses the environment's proxies, though not for this machine itself.

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
                "Check the variables that name proxies, such as HTTPS_PROXY."
            ) from error

    async def _ask(
        self, client: httpx.AsyncClient, places: asyncio.Semaphore, image: Tensor, question: str
    ) -> Answer | ServerError:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=_pause,
            retry=tenacity.retry_if_exception_type(_PassingError),
            reraise=True,
        )
        try:
            return await retrying(self._request, client, places, image, question)
        except _PassingError as error:
            return ServerError(f"{error} ({self.attempts} attempts)")
        except _OneQuestionError as error:
            return ServerError(str(error))

    async def _request(
        self, client: httpx.AsyncClient, places: asyncio.Semaphore, image: Tensor, question: str
    ) -> Answer:
        async with places:
            parts = [
                {"type": "image_url", "image_url": {"url": data_url(image)}},
                {"type": "text", "text": question},
            ]
            body = {**self.settings, "messages": [{"role": "user", "content": parts}]}
            try:
                response = await client.post(self.url, json=body)
            except httpx.TimeoutException as error:
                raise _PassingError(f"{self.url} did not answer within {self.timeout:g} s") from error
            except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as error:
                kind = _OneQuestionError if _is_distrusted(error) else _PassingError
                raise kind(f"{self.url} is not reached: {str(error) or repr(error)}") from error
            except (
                httpx.HTTPError,
                httpx.InvalidURL,
                ValueError,
            ) as error:  # ValueError: of the prompt, as JSON
                raise _OneQuestionError(f"{self.url}: {type(error).__name__}: {error}") from error
        return self._read(response)

    def _read(self, response: httpx.Response) -> Answer:
        said = f"{self.url} answered {response.status_code}: {response.text[:200]!r}"
        if response.status_code != 200:
            if response.is_redirect:
                said += (
                    f", which leads to {response.headers.get('Location')!r}. Set base_url to where it leads"
                )
            self._refuse(response.status_code, said, response.headers.get("Retry-After"))
        try:
            return read_completion(response.content)
        except CompletionError as error:
            if error.status is not None:
                self._refuse(error.status, said, response.headers.get("Retry-After"))
            raise _OneQuestionError(f"{said}, {error}") from error

    def _refuse(self, status: int, said: str, retry_after: str | None) -> NoReturn:
        """Raise what an answer with `status` that is no success means."""
        if status in FOR_ALL:
            raise ServerError(f"{said}. {FOR_ALL[status]}.")
        if status in BUSY or status >= 500:
            raise _PassingError(said, _retry_after(retry_after))
        raise _OneQuestionError(said)


def _is_distrusted(error: BaseException | None) -> bool:
    """Whether a connection failed because a certificate is not trusted, which asking again does not mend."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: what the server asks for, up to `PATIENCE`, else growing and random."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.pause if isinstance(error, _PassingError) else None
    return BACK_OFF(state) if asked is None else min(asked, PATIENCE)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header means, which holds seconds or a date; None if it holds neither."""
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
    """An image uint8 [3, H, W] as a data URL of a PNG."""
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG", compress_level=1)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
