"""A chat-completions server on the loopback interface, run in a thread, and judges that ask it."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import tenacity
from marble_reward_judge import chat
from marble_reward_judge.judge import Judge

Reply = tuple[int, Mapping[str, str], str]  # status, headers, body


@dataclass
class Server:
    """Received requests, and the way to answer them: `reply` is given a request's body and number."""

    url: str = ""
    reply: Callable[[dict[str, Any], int], Reply] = lambda body, number: Server.says("Final Score: 4")
    seconds: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def says(text: str | None) -> Reply:
        """Return a chat completion with this text."""
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return 200, {}, json.dumps({"id": "1", "object": "chat.completion", "choices": choices})

    def question(self, number: int) -> str:
        text: str = self.bodies[number]["messages"][0]["content"][1]["text"]
        return text


@pytest.fixture(autouse=True)
def _no_waits_and_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once, and ignore the proxies of this machine's environment."""
    monkeypatch.setattr(chat, "BACK_OFF", tenacity.wait_none())
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def judge(server: Server) -> Callable[..., Judge]:
    """Return a function that makes a judge of the server, or of another `url`."""

    def make(url: str | None = None, **options: Any) -> Judge:
        settings = {"template": "Rate: {prompt}", "pattern": r"(\d+)", "low": 0, "high": 10, **options}
        return Judge(server.url if url is None else url, "a-model", **settings)

    return make


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run the server, which answers with `reply` after `seconds`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with state.lock:
                state.under_way += 1
                state.most = max(state.most, state.under_way)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.bodies)
                state.bodies.append(body)
                state.headers.append(dict(self.headers))
                state.paths.append(self.path)
                state.times.append(time.monotonic())
            time.sleep(state.seconds)
            status, headers, text = state.reply(body, number)
            with state.lock:
                state.under_way -= 1
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())
            except (BrokenPipeError, ConnectionResetError):  # the client has given up
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield state
        http.shutdown()
        thread.join()
