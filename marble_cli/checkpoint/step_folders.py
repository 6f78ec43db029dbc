"""Find, keep and set aside the step folders of a run, and the pointers `latest` and `best` to them."""

from pathlib import Path

from marble_cli.checkpoint import manifest
from marble_cli.checkpoint.manifest import STEP_FOLDER
from marble_cli.errors import CheckpointError
from marble_cli.files import remove, write_whole


def steps(run: Path) -> list[Path]:
    """Return a run's step folders, newest first."""
    folders = (p for p in (run / "checkpoints").glob("step-*") if STEP_FOLDER.fullmatch(p.name))
    return sorted(folders, key=step_of, reverse=True)


def place(run: Path, step: int) -> Path:
    """Return where a run has the checkpoint of `step`."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step in a step folder's name."""
    return int(folder.name.removeprefix("step-"))


def set_aside(run: Path, step: int) -> list[Path]:
    """Rename the checkpoints after `step`, to which a run goes back, and return their new paths."""
    moved = []
    for folder in steps(run):
        if step_of(folder) > step:
            name, times = f"abandoned-{folder.name}", 1
            while folder.with_name(name).exists():
                times += 1
                name = f"abandoned-{folder.name}-{times}"
            moved.append(folder.rename(folder.with_name(name)))
            if read_pointer(run, "best") == folder.name:
                (run / "checkpoints" / "best").unlink()
    return moved


def point_best(run: Path, step: int | None) -> None:
    """Point `best` at the checkpoint of `step`, if there is one: a kill may come between both.

    `set_aside` removes the pointer if the best checkpoint is one of those set aside.
    """
    folder = None if step is None else place(run, step)
    if folder is not None and read_pointer(run, "best") != folder.name and folder.is_dir():
        write_whole(run / "checkpoints" / "best", f"{folder.name}\n")


def remove_leftovers(run: Path) -> None:
    """Remove temporary folders of a process that died while it wrote or deleted a checkpoint."""
    for leftover in (run / "checkpoints").glob(".*.tmp"):
        remove(leftover)


def read_pointer(run: Path, pointer: str) -> str | None:
    """Return the name of the step folder that the pointer file `latest` or `best` holds, or None."""
    path = run / "checkpoints" / pointer
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        name = stream.read(64).decode(errors="replace").strip()
    return name if STEP_FOLDER.fullmatch(name) else None


def pointed(path: Path) -> Path | None:
    """Return the step folder that a run's file `best` or `latest` names, None for any other path."""
    if path.name not in ("best", "latest") or path.parent.name != "checkpoints":
        return None
    name = read_pointer(path.parent.parent, path.name)
    return path.parent / name if name and (path.parent / name / manifest.NAME).is_file() else None


def retain(written: Path, keep_last: int, keep_every: int) -> None:
    """Delete the run's step folders that `save` does not keep; `written`, just verified, always stays."""
    run, valid = written.parent.parent, 0
    best = read_pointer(run, "best")
    for folder in steps(run):
        if valid < max(1, keep_last) or folder == written:
            valid += _is_complete(folder)
        elif folder.name != best and not (keep_every and step_of(folder) % keep_every == 0):
            doomed = folder.with_name(f".{folder.name}.tmp")
            remove(doomed)
            folder.rename(doomed)  # a half-deleted folder must not look like a checkpoint
            remove(doomed)


def _is_complete(folder: Path) -> bool:
    """Check a step folder by its manifest and the sizes of its files; their contents are not read."""
    try:
        manifest.check_files(folder, manifest.read(folder), ())
    except CheckpointError:
        return False
    return True
