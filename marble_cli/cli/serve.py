"""`marble rewards serve`."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_cli.errors import MarbleError, RequestError
from marble_cli.output import answering
from marble_cli.redaction import learn, redact

if TYPE_CHECKING:
    import socket

    from marble_cli.config.schema import RewardConfig
    from marble_cli.rewards.elsewhere.server import Limits

EPILOG = "Example:  marble rewards serve ocr clipscore --port 8600"
Say = Callable[[dict[str, Any]], None]
GRACE = 2.0  # seconds to stop in, once the run that asked for this server is gone


def serve(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME|OVERRIDE", help="Rewards, and configuration for them."),
    ] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one.")] = 0,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            envvar="MARBLE_REWARD_TOKEN",
            help="What clients must show; needed beyond this machine.",
        ),
    ] = None,
    max_images: Annotated[int, typer.Option(metavar="N", min=1, help="Most images a call.")] = 512,
    max_bytes: Annotated[int, typer.Option(metavar="N", min=1, help="Most bytes a call.")] = 1 << 30,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be served; build nothing.")
    ] = False,
    stdin: Annotated[bool, typer.Option("--stdin", hidden=True)] = False,
) -> None:
    """Serve rewards over HTTP, to runs in other environments or machines."""
    with _one_line() as say:
        try:
            limits = _limits(max_images, max_bytes)
            if stdin:
                rewards, device, token = _asked_by_a_run(watch=not dry_run)
            else:
                rewards, device = _asked(words or [])
            code = _serve(rewards, device, host, port, token or None, limits, dry_run, say)
        except MarbleError as error:
            if not stdin:
                raise
            say({"error": redact(str(error)), "exit_code": error.exit_code})
            code = error.exit_code
    raise typer.Exit(code)


@contextmanager
def _one_line() -> Iterator[Say]:
    """Keep standard output for what the caller is told; what else is printed there goes to standard error."""
    with answering() as line:

        def say(document: dict[str, Any]) -> None:
            print(json.dumps(document), file=line, flush=True)

        yield say


def _limits(images: int, size: int) -> "Limits":
    try:
        import uvicorn  # noqa: F401

        from marble_cli.rewards.elsewhere.server import Limits
    except ModuleNotFoundError as error:
        raise RequestError(
            f"marble rewards serve needs FastAPI and uvicorn ({error}). Install them: pip install 'marble-cli[serve]'"
        ) from error
    return Limits(images, size)


def _asked(words: list[str]) -> tuple[dict[str, "RewardConfig"], str]:
    """Rewards and device of the command line: an override has a `=` or begins with `~`."""
    import torch

    from marble_cli.cli.rewards import chosen

    names = [word for word in words if "=" not in word and not word.startswith("~")]
    if not names:
        raise RequestError("which reward? Expected e.g. marble rewards serve ocr")
    rewards, config = chosen(names, [word for word in words if word not in names])
    device = config.model.device
    if device == "auto":  # `pick_device` would import the model families
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return rewards, device


def _asked_by_a_run(watch: bool) -> tuple[dict[str, "RewardConfig"], str, str | None]:
    """Rewards, device and token from standard input, which stays open as long as the run wants this server."""
    from marble_cli.config.schema import RewardConfig

    request = json.loads(sys.stdin.buffer.readline())
    if watch:
        threading.Thread(target=_end_with_the_run, daemon=True).start()
    rewards = {name: RewardConfig(**row) for name, row in request["rewards"].items()}
    return rewards, request["device"], request["token"]


def _end_with_the_run() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _serve(
    rewards: dict[str, "RewardConfig"],
    device: str,
    host: str,
    port: int,
    token: str | None,
    limits: "Limits",
    dry_run: bool,
    say: Say,
) -> int:
    """Build the rewards and serve them until a signal; returns the exit code."""
    import uvicorn

    from marble_cli.interrupts import Interrupt
    from marble_cli.rewards.elsewhere.client import is_loopback
    from marble_cli.rewards.elsewhere.locate import declare, maker
    from marble_cli.rewards.elsewhere.protocol import PROTOCOL
    from marble_cli.rewards.elsewhere.server import Served, build_app, health
    from marble_cli.rewards.registry import origin
    from marble_cli.rewards.worker import RewardWorker

    learn(token)
    if token is None and not is_loopback(host):
        raise RequestError(
            f"--host {host} can be reached from other machines, and no token is set. Set one: MARBLE_REWARD_TOKEN=... "
            "or --token, or leave --host out."
        )
    origins = {name: origin(settings.plugin) for name, settings in rewards.items()}
    declared = {name: declare(name, settings) for name, settings in rewards.items()}
    if dry_run:
        say(health({name: Served(declared[name], origins[name]) for name in rewards}, limits))
        return 0
    with ExitStack() as stack:
        bound = stack.enter_context(_bind(host, port))
        lanes = {}
        for name, settings in rewards.items():
            lanes[name] = stack.enter_context(
                closing(RewardWorker(name, settings, maker(name, settings, device)))
            )

        class Announced(uvicorn.Server):
            """Says where it listens once it does."""

            async def startup(self, sockets: "list[socket.socket] | None" = None) -> None:
                await super().startup(sockets)
                say({"url": _url(bound), "rewards": list(lanes), "protocol": PROTOCOL})
                self.should_exit = self.should_exit or interrupt.exit_code is not None

        settled = uvicorn.Config(
            build_app(lanes, origins, token, limits), log_level="warning", access_log=False, server_header=False,
            lifespan="off", ws="none", timeout_graceful_shutdown=5,
        )  # fmt: skip
        with Interrupt() as interrupt:
            Announced(settled).run(sockets=[bound])
    return 143 if interrupt.exit_code == 143 else 0


def _bind(host: str, port: int) -> "socket.socket":
    """A socket that does not listen yet: a client that comes too early is told so at once."""
    import socket

    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise RequestError(
            f"--host {host} --port {port}: cannot listen there: {error.strerror or error}. Choose another, or --port 0."
        ) from error
    return bound


def _url(bound: "socket.socket") -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
