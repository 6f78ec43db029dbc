"""The upload, by the hub's own client against a hub on this machine."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from marble_cli.errors import MarbleError, RequestError
from marble_cli.push.upload import check_repo, upload
from tests.push.hub import Hub, digest, serving

# Its client sends large files in a way that its library for HTTP wants changed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

TOKEN = "hf_" + "a" * 34
REPO = "me/lora"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub, and log this process in."""
    with serving(TOKEN) as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # another protocol, binary
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.close_session()
        yield found
        huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a card, a large file and a picture."""
    (tmp_path / "images").mkdir()
    for name, content in (("README.md", b"# a"), ("w.safetensors", b"weights"), ("images/0.webp", b"RIFF")):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_everything_in_the_folder_arrives(hub: Hub, folder: Path) -> None:
    assert upload(folder, REPO) == f"{hub.url}/{REPO}"
    assert hub.files == {REPO: content(folder)}


def test_a_second_push_replaces_pictures_and_sends_what_is_new(hub: Hub, folder: Path) -> None:
    upload(folder, REPO)
    (folder / "images" / "0.webp").rename(folder / "images" / "1.webp")
    (folder / "README.md").write_bytes(b"# b")
    upload(folder, REPO)
    assert hub.files == {REPO: content(folder)}
    assert hub.sent.count(digest(b"weights")) == 1


def test_a_failed_upload_says_what_to_do_and_the_next_sends_only_what_is_missing(
    hub: Hub, folder: Path
) -> None:
    hub.broken = True
    with pytest.raises(MarbleError, match=r"me/lora: the upload failed: .* Run the same command") as error:
        upload(folder, REPO)
    assert error.value.exit_code == 1
    assert str(folder) in str(error.value)
    assert sorted(hub.sent) == sorted([digest(b"weights"), digest(b"RIFF")])
    assert hub.files == {REPO: {}}
    hub.broken = False
    upload(folder, REPO)
    assert len(hub.sent) == 2  # nothing is sent twice
    assert hub.files == {REPO: content(folder)}


def test_without_a_login_the_message_says_how_to_log_in(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    with pytest.raises(MarbleError, match="401.*hf auth login, or HF_TOKEN"):
        upload(folder, REPO)


def test_an_unreachable_hub_is_an_error_with_a_remedy(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MarbleError, match="the upload failed: .*Run the same command again to continue"):
        upload(folder, REPO)


def test_a_process_that_may_not_use_the_network_says_so(folder: Path) -> None:
    with pytest.raises(MarbleError, match="offline mode is enabled"):  # HF_HUB_OFFLINE of the tests
        upload(folder, REPO)


@pytest.mark.parametrize("repo", ["lora", "a/b/c", "me/a lora", "me/", "/lora", "me/-lora", "../lora"])
def test_a_name_that_is_no_hub_id_is_refused(repo: str) -> None:
    with pytest.raises(RequestError, match="is no hub id.*Expected OWNER/NAME"):
        check_repo(repo)
