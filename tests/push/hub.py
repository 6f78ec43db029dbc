"""A stand-in for the Hugging Face hub: it takes the commits of its client and keeps large files by digest."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMMIT = "0" * 40


@dataclass
class Hub:
    """The hub's address, the files of its repositories, and what was sent to it.

    Attributes:
        url: its address.
        token: the token that may write.
        files: the content of every file, by repository.
        large: the content of large files by SHA-256, arrived but perhaps in no repository yet.
        sent: the digests of the large files that were sent, in order.
        broken: whether commits are refused.
    """

    url: str
    token: str
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    broken: bool = False

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON for a request."""
        path = path.split("?")[0]
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            known = repo in self.files
            self.files.setdefault(repo, {})
            return (409 if known else 200), {"url": f"{self.url}/{repo}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/large/"):
            self.sent.append(path.split("/")[2])
            self.large[path.split("/")[2]] = body
            return 200, {}
        if path.endswith("/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._object(o) for o in json.loads(body)["objects"]],
            }
        repo = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            return 200, {"files": [_mode(file["path"]) for file in json.loads(body)["files"]]}
        if "/commit/" in path:
            return self._commit(repo, body)
        if "/tree/" in path:
            return 200, [
                {"type": "file", "path": name, "size": len(content), "oid": "0"}
                for name, content in self.files[repo].items()
            ]
        return 200, {
            "id": repo,
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in self.files[repo]],
        }

    def _object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        known = wanted["oid"] in self.large
        upload = {"upload": {"href": f"{self.url}/large/{wanted['oid']}", "header": {}}}
        return {**wanted, **({} if known else {"actions": upload})}

    def _commit(self, repo: str, body: bytes) -> tuple[int, Any]:
        if self.broken:
            return 413, {"error": "the repository is too large"}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del self.files[repo][value["path"]]
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith((".safetensors", ".webp")) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}


@contextmanager
def serving(token: str) -> Iterator[Hub]:
    """Serve a hub on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "Transfer-Encoding" in self.headers:
                body = b"".join(iter(self._chunk, b""))
            allowed = self.headers.get("Authorization") == f"Bearer {token}" or self.path.startswith(
                "/large/"
            )
            status, answer = (
                hub.answer(self.command, self.path, body) if allowed else (401, {"error": "who are you?"})
            )
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunk(self) -> bytes:
            size = int(self.rfile.readline(), 16)
            chunk = self.rfile.read(size)
            self.rfile.readline()
            return chunk

        do_GET = do_POST = do_PUT = _do  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", token)
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
