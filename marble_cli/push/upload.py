"""Upload a folder to the Hugging Face hub, and say what to do if that fails."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from marble_cli import __version__
from marble_cli.errors import MarbleError, RequestError

LOGIN = (401, 403)


def check_repo(repo: str) -> None:
    """Check that `repo` has the form OWNER/NAME of a hub id.

    Raises:
        RequestError: it has another form.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise RequestError(f"{repo} is no hub id: {reason}. Expected OWNER/NAME.") from error
    if repo.count("/") != 1:
        raise RequestError(
            f"{repo} is no hub id. Expected OWNER/NAME, with your account or team as the owner."
        )


def upload(folder: Path, repo: str) -> str:
    """Upload `folder` in one commit, into a new repository or an existing one; return its address.

    The hub keeps large files that have arrived, so that a second attempt sends only what is missing.

    Raises:
        MarbleError: the hub did not take the folder.
    """
    api = HfApi(library_name="marble", library_version=__version__)
    try:
        address = api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=f"Upload a LoRA of marble {__version__}",
            delete_patterns="images/*",  # of an earlier push
        )
    except Exception as error:  # the client lets errors of its libraries for HTTP and large files through
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        reason = ": ".join(dict.fromkeys(map(_first_line, filter(None, (error, error.__cause__)))))
        remedy = (
            "Log in with a token that may write: hf auth login, or HF_TOKEN. Then run"
            if status in LOGIN
            else "Run"
        )
        raise MarbleError(
            f"{repo}: the upload failed: {reason}. {folder} is complete, and the hub keeps large files "
            f"that have arrived. {remedy} the same command again to continue."
        ) from error
    return str(address)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
