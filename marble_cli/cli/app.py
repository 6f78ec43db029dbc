"""The `marble` command and how its errors become messages and exit codes."""

import atexit
import errno
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

import typer

from marble_cli import __version__
from marble_cli.cli import (
    bench,
    doctor,
    evaluate,
    explain,
    export,
    generate,
    merge,
    push,
    report,
    rewards,
    sync,
    train,
)
from marble_cli.cli.encoding import take_every_text
from marble_cli.errors import LostError, MarbleError, PeerError
from marble_cli.interrupts import interruptible, record_exit_code
from marble_cli.notices import drop_notices
from marble_cli.redaction import RedactingFilter, redact_output
from marble_cli.rewards.guard import is_plugin_at_work

INTERRUPTED = 130
GRACE = 10.0  # seconds that threads have to end in when the command ends

app = typer.Typer(
    name="marble",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune image models on several rewards at once, without pushing any of them down.",
    epilog="Example:  marble train preset=tiny trainer.steps=20 run.dir=runs/first",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"marble {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Give libraries a home folder for the command if the user has none."""
    from marble_cli.paths import ensure_home, home

    if home() is None and context.invoked_subcommand != "train":  # a run has a folder of its own
        spare = tempfile.TemporaryDirectory(prefix="marble-home-")
        atexit.register(spare.cleanup)
        ensure_home(Path(spare.name))


app.command("train", epilog=train.EPILOG)(train.train)
app.command("eval", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command("bench", epilog=bench.EPILOG)(bench.bench)
app.command("explain", epilog=explain.EPILOG)(explain.explain)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("generate", epilog=generate.EPILOG)(generate.generate)
app.add_typer(rewards.app, name="rewards")
app.command("export", epilog=export.EPILOG)(export.export)
app.command("push", epilog=push.EPILOG)(push.push)
app.command("merge", epilog=merge.EPILOG)(merge.merge)
app.command("sync", epilog=sync.EPILOG)(sync.sync)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)


def main() -> None:
    """Run the command line and exit; an error becomes one message and an exit code, without a traceback."""
    take_every_text()
    for library in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(library, "error")  # their warnings are not addressed to users of marble
    drop_notices()
    redact_output()
    handler = logging.StreamHandler()
    handler.addFilter(RedactingFilter())
    handler.setFormatter(logging.Formatter("marble: %(message)s"))
    logging.getLogger("marble").addHandler(handler)
    debug = os.environ.get("MARBLE_DEBUG") == "1"
    try:
        with interruptible():
            app()
    except SystemExit as end:
        _leave(end.code)
    except PeerError as error:
        if debug:
            print(f"marble: {error}", file=sys.stderr)
        _leave(error.exit_code, follows=True)
    except MarbleError as error:
        if debug:
            raise
        print(f"marble: {error}", file=sys.stderr)
        _leave(error.exit_code, follows=isinstance(error, LostError))
    except KeyboardInterrupt:
        print("marble: interrupted", file=sys.stderr)
        _leave(INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # of standard output, too
            print(f"marble: {error}. Free some space, and run the command again.", file=sys.stderr)
            _leave(1)
        print(
            f"marble: {type(error).__name__}: {error}. This looks like a bug in marble. "
            "Set MARBLE_DEBUG=1 for the traceback.",
            file=sys.stderr,
        )
        _leave(1)


def _leave(code: str | int | None, *, follows: bool = False) -> NoReturn:
    """Exit with `code`; without the interpreter's orderly end where that could hang or abort.

    In a distributed run, connections to the other processes may hang once those are gone, and threads of gloo
    that still hold tensors abort the orderly end. So does a reward's call that was abandoned within torch.

    Args:
        code: the exit code, or a message as `sys.exit` takes it.
        follows: whether this process ends because another one did, and so is not the one to record why.
    """
    distributed = "WORLD_SIZE" in os.environ
    if (distributed or is_plugin_at_work()) and not isinstance(code, str):
        if distributed and not follows:
            record_exit_code(code or 0)
        _end(code or 0)
    if _threads():
        ending = threading.Event()
        # Python waits for threads without limit, and says that it begins to only here.
        threading._register_atexit(ending.set)  # type: ignore[attr-defined]
        threading.Thread(target=_end_late, args=(ending, code), daemon=True).start()
    sys.exit(code)


def _threads() -> list[threading.Thread]:
    """Return the threads beside the main one that Python waits for at its end."""
    main_thread = threading.main_thread()
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not main_thread]


def _end_late(ending: threading.Event, code: str | int | None) -> None:
    """End the process if threads, such as those that a plugin started, are alive long after `ending`."""
    ending.wait()
    time.sleep(GRACE)
    if _threads():
        _end(1 if isinstance(code, str) else code or 0)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
