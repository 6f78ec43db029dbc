"""Ask an OpenAI-compatible server about pictures: many at once but never too many, tried again where that may help."""

import asyncio
import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any

import httpx
import tenacity
from PIL import Image
from torch import Tensor

PATIENCE = 60.0  # seconds that a server may ask for before a further attempt
BACK_OFF = tenacity.wait_random_exponential(multiplier=0.5, max=30.0)  # seconds
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


@dataclass(frozen=True)
class Answer:
    """What the model said; `cut` if it had no room to end."""

    text: str
    cut: bool


class ChatServer:
    """A model behind `<base_url>/chat/completions`."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None,
        temperature: float,
        max_tokens: int,
        concurrency: int,
        request_timeout: float,
        attempts: int,
    ) -> None:
        """Note how to reach it; nothing is sent.

        Args:
            base_url: its address, e.g. http://127.0.0.1:8000/v1.
            model: the name under which it serves the model.
            api_key_env: name of the environment variable that holds the key; None if it asks for none.
            temperature: of sampling; 0 takes the likeliest word.
            max_tokens: length of an answer at most.
            concurrency: requests under way at a time.
            request_timeout: seconds for one request.
            attempts: requests for one answer at most.

        Raises:
            ValueError: an argument is of no use, or the variable with the key is not set.
        """
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url={base_url!r}: expected an address such as http://127.0.0.1:8000/v1")
        for name, value in {
            "concurrency": concurrency,
            "attempts": attempts,
            "max_tokens": max_tokens,
        }.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected a whole number from 1 on")
        key = os.environ.get(api_key_env, "") if api_key_env else ""
        if api_key_env and not key:
            raise ValueError(f"the environment variable {api_key_env}, which api_key_env names, is not set")
        self.url = f"{base_url.rstrip('/')}/chat/completions"
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.settings = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
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
        limits = httpx.Limits(max_connections=self.concurrency)
        async with (
            httpx.AsyncClient(headers=self.headers, timeout=self.timeout, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            tasks = [
                group.create_task(self._ask(client, places, image, question))
                for image, question in zip(images, questions, strict=True)
            ]
        return [task.result() for task in tasks]

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
            except httpx.TransportError as error:
                raise _PassingError(f"{self.url} is not reached: {str(error) or repr(error)}") from error
        return self._read(response)

    def _read(self, response: httpx.Response) -> Answer:
        status = response.status_code
        said = f"{self.url} answered {status}: {response.text[:200]!r}"
        if status in FOR_ALL:
            raise ServerError(f"{said}. {FOR_ALL[status]}.")
        if status == 429 or status >= 500:
            raise _PassingError(said, _retry_after(response.headers.get("Retry-After")))
        if status != 200:
            raise _OneQuestionError(said)
        try:
            choice: Any = response.json()["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise _OneQuestionError(f"{said}, which is no chat completion") from error
        if not isinstance(text, str):
            raise _OneQuestionError(f"{said}, which has no text")
        return Answer(text, choice.get("finish_reason") == "length")


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
