"""`marble rewards serve`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_cli.cli.rewards.selection import select_rewards
from marble_cli.errors import MarbleError, RequestError
from marble_cli.output import answering
from marble_cli.redaction import redact

if TYPE_CHECKING:
    from marble_cli.config.schema import RewardConfig
    from marble_cli.rewards.elsewhere.server import Limits
    from marble_cli.rewards.elsewhere.serving import Announce

EPILOG = "Example:  marble rewards serve ocr clipscore --port 8600"


def serve(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|OVERRIDE", help="Rewards to serve, and overrides of their configuration."
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = 0,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            envvar="MARBLE_REWARD_TOKEN",
            help="The secret that clients must send. Required if --host can be reached from other machines.",
        ),
    ] = None,
    max_images: Annotated[int, typer.Option(metavar="N", min=1, help="Images per call at most.")] = 512,
    max_bytes: Annotated[int, typer.Option(metavar="N", min=1, help="Bytes per call at most.")] = 1 << 30,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the rewards and describe them; build and serve nothing.")
    ] = False,
    stdin: Annotated[bool, typer.Option("--stdin", hidden=True)] = False,
) -> None:
    """Serve rewards over HTTP to runs in other environments or on other machines."""
    with _announcing() as announce:
        try:
            limits = _limits(max_images, max_bytes)
            keys: dict[str, str] = {}  # of a run that asks; a command line has rewards.<name>
            from marble_cli.rewards.elsewhere import serving

            if stdin:
                rewards, keys, device, token = serving.read_request()
                if not dry_run:
                    serving.end_with_stdin()
            else:
                rewards, device = _selection(words or [])
            if dry_run:
                code = serving.describe_rewards(rewards, keys, host, token or None, limits, announce)
            else:
                code = serving.serve_rewards(
                    rewards, keys, device, host, port, token or None, limits, announce
                )
        except MarbleError as error:
            if not stdin:
                raise
            announce({"error": redact(str(error)), "exit_code": error.exit_code})
            code = error.exit_code
    raise typer.Exit(code)


@contextmanager
def _announcing() -> Iterator["Announce"]:
    """Yield a function that prints a line of JSON on standard output; other output goes to standard error."""
    with answering() as out:

        def announce(document: dict[str, Any]) -> None:
            print(json.dumps(document), file=out, flush=True)

        yield announce


def _limits(images: int, size: int) -> "Limits":
    try:
        import uvicorn  # noqa: F401

        from marble_cli.rewards.elsewhere.server import Limits
    except ModuleNotFoundError as error:
        raise RequestError(
            f"marble rewards serve needs FastAPI and uvicorn ({error}). "
            "Install them: pip install 'marble-cli[serve]'"
        ) from error
    return Limits(images, size)


def _selection(words: list[str]) -> tuple[dict[str, "RewardConfig"], str]:
    """Return the rewards and the device that the command line names.

    A word with a `=` or with `~` at its start is an override; any other is the name of a reward.
    """
    import torch

    names = [word for word in words if "=" not in word and not word.startswith("~")]
    if not names:
        raise RequestError("no reward is named. Expected at least one, e.g. marble rewards serve ocr")
    rewards, config = select_rewards(names, [word for word in words if word not in names])
    device = config.model.device
    if device == "auto":  # `pick_device` would import the model families
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return rewards, device
