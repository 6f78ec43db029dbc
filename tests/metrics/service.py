"""A stand-in for W&B's service: it accepts what W&B's client sends and keeps each run's lines by offset."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Service:
    """The service's address, and every run's history and (project, entity, name)."""

    url: str
    histories: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    called: dict[str, tuple[str, str | None, str | None]] = field(default_factory=dict)
    broken: bool = False  # whether every upload of metrics is answered with an error

    def steps(self, run: str) -> list[int]:
        lines = self.histories[run]
        return [lines[place]["_step"] for place in sorted(lines)]

    def values(self, run: str, key: str) -> list[Any]:
        lines = self.histories[run]
        return [lines[place].get(key) for place in sorted(lines)]

    def stream(self, run: str, files: dict[str, dict[str, Any]]) -> None:
        chunk = files.get("wandb-history.jsonl")
        if chunk is not None:
            lines = self.histories.setdefault(run, {})
            if chunk["offset"] == 0:
                lines.clear()  # the history starts again
            for place, line in enumerate(chunk["content"], start=chunk["offset"]):
                lines[place] = json.loads(line)


def answer(variables: dict[str, Any], lines: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return an answer that satisfies every query of the client about a run with these `lines`."""
    project = {"id": "p", "name": variables.get("project") or "p", "entity": {"id": "e", "name": "team"}}
    bucket = {
        "id": "b",
        "name": variables.get("name") or "x",
        "displayName": "d",
        "description": None,
        "config": "{}",
        "sweepName": None,
        "historyLineCount": 0,
        "project": project,
    }
    tail = json.dumps(lines[max(lines)] if lines else {})
    known = {
        "historyLineCount": len(lines),
        "historyTail": json.dumps([tail]),
        "summaryMetrics": tail,
        "eventsLineCount": 0,
        "eventsTail": "[]",
        "logLineCount": 0,
        "tags": [],
        "wandbConfig": '{"t": 1}',
    }
    viewer = {"id": "v", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}
    return {
        "viewer": viewer,
        "serverInfo": {"cliVersionInfo": {}, "features": [], "latestLocalVersionInfo": None},
        "upsertBucket": {"bucket": bucket, "inserted": True},
        "model": {**project, "bucket": bucket | known} if lines else None,
        "project": None,
        "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []},
    }


@contextmanager
def serving() -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def reply(self, content: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                raw = gzip.decompress(raw)
            if self.path.endswith("/file_stream"):
                if service.broken:
                    self.reply({"error": "no room"}, 400)
                    return
                service.stream(self.path.split("/")[-2], json.loads(raw).get("files", {}))
                self.reply({"exitcode": None, "limits": {}})
            elif self.path == "/graphql":
                asked = json.loads(raw)
                variables = asked.get("variables", {})
                if "UpsertBucket" in asked["query"] and variables.get("displayName"):
                    told = (variables["project"], variables["entity"], variables["displayName"])
                    service.called[variables["name"]] = told
                self.reply({"data": answer(variables, service.histories.get(variables.get("name"), {}))})
            else:
                self.reply({})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service = Service(f"http://127.0.0.1:{server.server_port}")
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
