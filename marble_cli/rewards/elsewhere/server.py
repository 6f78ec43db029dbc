"""Serve rewards with FastAPI, each in a worker of its own."""

import asyncio
import hmac
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from marble_cli import __version__
from marble_cli.errors import RewardError
from marble_cli.redaction import redact
from marble_cli.rewards.answers import Explained
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.elsewhere import protocol
from marble_cli.rewards.worker import RewardWorker
from marble_cli.wording import described

NO_CONDITIONS = (
    "reward {name} compares an image with the picture that it was edited from, and the request has none. "
    "Expected `conditions` in it, which a marble of the server's version sends."
)
NO_FRAMES = "reward {name} scores videos, and the request has none. Expected `frames` in it."
BEAT_EVERY = 0.25  # seconds between two signs that a call still waits for its turn
GONE = "the client has gone"  # for the log: no one reads the answer

Beat = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """The limits of a server: images and bytes per call, and calls of one reward, with the one under way."""

    images: int = 512
    bytes: int = 1 << 30
    waiting: int = 64


@dataclass(frozen=True)
class Served:
    """A reward as the health document describes it; `origin` is its distribution and version."""

    declaration: Declaration
    origin: str


class RefusedError(Exception):
    """A request that is answered with an HTTP status and an error."""

    def __init__(self, status: int, kind: str, message: str):
        self.status, self.kind, self.message = status, kind, message


def health(served: Mapping[str, Served], limits: Limits) -> dict[str, Any]:
    """Return the document that a client reads before it asks for scores."""
    return {
        "service": protocol.SERVICE,
        "protocol": protocol.PROTOCOL,
        "marble": __version__,
        "limits": {"images": limits.images, "bytes": limits.bytes},
        "rewards": {
            name: {**protocol.declaration_to_json(reward.declaration), "origin": reward.origin}
            for name, reward in served.items()
        },
    }


def build_app(
    workers: Mapping[str, RewardWorker], origins: Mapping[str, str], token: str | None, limits: Limits
) -> FastAPI:
    """Return the application that serves rewards.

    Args:
        workers: of the rewards by name; the caller closes them.
        origins: distribution and version of each reward.
        token: secret that clients must send, None for none.
        limits: of a call.
    """
    expected = protocol.authorization(token).encode() if token is not None else None

    async def authorised(request: Request) -> None:
        shown = request.headers.get("Authorization", "").encode()
        if expected is not None and not hmac.compare_digest(shown, expected):
            raise RefusedError(401, protocol.REFUSED, "the token is wrong or missing")

    app = FastAPI(openapi_url=None, dependencies=[Depends(authorised)])
    working: Counter[str] = Counter()

    @contextmanager
    def counted(name: str) -> Iterator[None]:
        working[name] += 1
        try:
            yield
        finally:
            working[name] -= 1

    @app.exception_handler(RefusedError)
    async def refuse(request: Request, error: RefusedError) -> Response:
        return _refusal(error)

    @app.get("/health")
    async def get_health() -> Response:
        served = {
            name: Served(replace(worker.reward.declaration, aspects=worker.aspects), origins[name])
            for name, worker in workers.items()
        }
        return _json(health(served, limits))

    @app.post("/score/{name}")
    async def score(
        name: str, request: Request, timeout: Annotated[float, Header(alias=protocol.TIMEOUT)] = 0.0
    ) -> Response:
        if name not in workers:
            raise RefusedError(404, protocol.REFUSED, f"{name!r} is not served here; {', '.join(workers)} is")
        worker = workers[name]
        busy = working[name] >= limits.waiting
        try:
            with nullcontext() if busy else counted(name):
                batch = await _read(request, limits, busy)
        except ClientDisconnect as error:
            raise RefusedError(499, protocol.REFUSED, GONE) from error
        if worker.reward.declaration.needs_conditions and batch.references is None:
            raise RefusedError(422, protocol.CONTRACT, NO_CONDITIONS.format(name=name))
        if worker.reward.declaration.needs_frames and batch.frames is None:
            raise RefusedError(422, protocol.CONTRACT, NO_FRAMES.format(name=name))

        async def answer(beat: Beat) -> Response:
            with counted(name):
                return _scores(await _score(worker, batch, timeout, request, beat))

        if protocol.TURNS in request.headers.get("Accept", ""):
            return TurnsResponse(answer)
        return await answer(lambda: asyncio.sleep(0))  # the client knows of no turns

    return app


class TurnsResponse(Response):
    """An answer of the type `protocol.TURNS`: `answer` beats while its call waits, and returns the rest."""

    def __init__(self, answer: Callable[[Beat], Awaitable[Response]]):
        # nginx would hold the beats back otherwise.
        super().__init__(media_type=protocol.TURNS, headers={"X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""

        async def write(body: bytes, *, more: bool) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            answer = await self.answer(lambda: write(protocol.BEAT, more=True))
        except RefusedError as error:
            answer = _refusal(error)
        await write(protocol.pack_answer(answer.status_code, bytes(answer.body)), more=False)


def _scores(answers: Mapping[str, Explained]) -> Response:
    parts = {
        aspect: (scores, {i: redact(described(reasons[i])) for i in sorted(reasons)[:1]})
        for aspect, (scores, reasons) in answers.items()
    }
    return Response(protocol.pack_scores(parts), media_type="application/octet-stream")


def _refusal(error: RefusedError) -> Response:
    return _json({"error": {"kind": error.kind, "message": redact(error.message)}}, error.status)


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(document), status, media_type="application/json")


async def _read(request: Request, limits: Limits, busy: bool) -> Batch:
    """Read the batch of a request.

    A request that is refused is read to its end as well; otherwise its sender would not receive the answer.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limits.bytes and not busy:
            chunks.append(chunk)
    if busy:
        raise RefusedError(503, protocol.REFUSED, f"{limits.waiting} calls of this reward wait already")
    if size > limits.bytes:
        raise RefusedError(
            413,
            protocol.TOO_LARGE,
            f"a batch of {size} bytes is more than the server takes, {limits.bytes} (--max-bytes)",
        )
    try:
        batch = protocol.unpack_batch(b"".join(chunks))
    except ValueError as error:
        raise RefusedError(400, protocol.REFUSED, str(error)) from error
    count = len(batch.images)
    if count > limits.images:
        raise RefusedError(
            413,
            protocol.TOO_LARGE,
            f"a batch of {count} images is more than the server takes, {limits.images} (--max-images)",
        )
    return batch


def _attempt(worker: RewardWorker, batch: Batch, timeout: float) -> dict[str, Explained] | Exception:
    """Return what `RewardWorker.attempt` returns or raises.

    A future of asyncio can hold neither StopIteration nor another future's CancelledError as an exception.
    """
    try:
        return worker.attempt(batch, timeout)
    except Exception as error:
        return error


async def _score(
    worker: RewardWorker, batch: Batch, timeout: float, request: Request, beat: Beat
) -> dict[str, Explained]:
    """Return the result of `RewardWorker.attempt` for a batch.

    The call waits for its turn, and is dropped if the client disconnects before that. `beat` is awaited every
    `BEAT_EVERY` seconds meanwhile, and at last when the turn has come.
    """
    call = worker.executor.submit(_attempt, worker, batch, timeout)
    answer = asyncio.wrap_future(call)
    begun = False
    # The body has been read, so this waits for a disconnection.
    gone = asyncio.ensure_future(request.receive())
    try:
        first: set[asyncio.Future[Any]] = {answer, gone}
        while not (await asyncio.wait(first, timeout=BEAT_EVERY, return_when=asyncio.FIRST_COMPLETED))[0]:
            if not begun:
                begun = call.running()
                await beat()
        if not answer.done():
            raise RefusedError(499, protocol.REFUSED, GONE)
        result = answer.result()
        if isinstance(result, Exception):
            raise result
        return result
    except RewardError as error:
        raise RefusedError(422, protocol.CONTRACT, str(error)) from error
    except RefusedError:
        raise
    except Exception as error:  # whatever a plugin may raise
        raise RefusedError(500, protocol.FAILURE, described(error)) from error
    finally:
        answer.cancel()
        gone.cancel()
