"""The Hugging Face hub on this machine: as much of its HTTP interface as its libraries ask for."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repo:
    """A data set: its files, at the only commit that it has.

    Attributes:
        files: Content by path.
        commit: The commit; `main` means it.
        refs: Further names of it, such as tags.
        is_gated: Whether nobody may read it.
        info: What else its description holds.
    """

    files: dict[str, bytes]
    commit: str = "1" * 40
    refs: tuple[str, ...] = ()
    is_gated: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    def is_at(self, revision: str) -> bool:
        return revision in ("main", self.commit, *self.refs)

    def entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": oid}


@dataclass
class Hub:
    """The server's side of the story.

    Attributes:
        repos: What it has.
        url: Where it is.
        asked: Methods and paths of all requests.
        tokens: What requests have proved themselves with.
        forbidden: Files that it does not give.
    """

    repos: dict[str, Repo]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    forbidden: set[str] = field(default_factory=set)


_API = re.compile(r"/api/datasets/(\w[\w.-]*/\w[\w.-]*)(?:/([\w-]+)(?:/([^/]+)(?:/(.*))?)?)?")
_FILE = re.compile(r"/datasets/(\w[\w.-]*/\w[\w.-]*)/resolve/([^/]+)/(.*)")


@contextmanager
def serving(repos: dict[str, Repo]) -> Iterator[Hub]:
    """A hub for as long as the block lasts."""
    hub = Hub(repos)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def hear(self, body: bytes = b"") -> None:
            hub.asked.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("Authorization", ""))
            path = urlsplit(self.path).path
            if found := _API.fullmatch(path):
                self.answer(found[1], found[2], unquote(found[3] or ""), found[4] or "", body)
            elif found := _FILE.fullmatch(path):
                self.give(found[1], unquote(found[2]), unquote(found[3]))
            else:
                self.refuse(404, "")

        def do_GET(self) -> None:
            self.hear()

        def do_HEAD(self) -> None:
            self.hear()

        def do_POST(self) -> None:
            self.hear(self.rfile.read(int(self.headers["Content-Length"])))

        def answer(
            self, name: str, what: str | None, revision: str, below: str, body: bytes
        ) -> None:
            repo = hub.repos.get(name)
            if repo is None:
                self.refuse(401, "RepoNotFound")
            elif what == "auth-check":
                self.refuse(403, "GatedRepo") if repo.is_gated else self.send({})
            elif revision and not repo.is_at(revision):
                self.refuse(404, "RevisionNotFound")
            elif what in (None, "revision"):
                siblings = [{"rfilename": path} for path in repo.files]
                gated = "auto" if repo.is_gated else False
                about = {"id": name, "sha": repo.commit, "siblings": siblings, "gated": gated}
                self.send({**about, **repo.info})
            elif what == "paths-info":
                form = parse_qs(body.decode())
                paths = form.get("paths") or json.loads(body)["paths"]
                self.send([repo.entry(path) for path in paths if path in repo.files])
            elif what == "tree":
                self.send(self.tree(repo, below))
            else:
                self.refuse(404, "")

        def tree(self, repo: Repo, below: str) -> list[dict[str, Any]]:
            start = f"{below}/" if below else ""
            paths = [path for path in repo.files if path.startswith(start)]
            folders = {path[: path.rindex("/")] for path in paths if "/" in path[len(start) :]}
            entries: list[dict[str, Any]] = [
                {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders
            ]
            is_deep = "recursive=true" in self.path.lower()
            files = [path for path in paths if is_deep or "/" not in path[len(start) :]]
            return entries + [repo.entry(path) for path in files]

        def give(self, name: str, revision: str, path: str) -> None:
            repo = hub.repos.get(name)
            if repo is None:
                self.refuse(401, "RepoNotFound")
            elif not repo.is_at(revision):
                self.refuse(404, "RevisionNotFound")
            elif path not in repo.files:
                self.refuse(404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
            elif path in hub.forbidden:
                self.refuse(403, "")
            else:
                content = repo.files[path]
                oid = repo.entry(path)["oid"]
                headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{oid}"'}
                status = 200
                if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                    start, end = int(span[1]), int(span[2] or len(content) - 1)
                    end = min(end, len(content) - 1)
                    headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                    content, status = content[start : end + 1], 206
                self.send_bytes(status, content, {**headers, "Accept-Ranges": "bytes"})

        def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
            about = {"X-Error-Code": code, "X-Error-Message": "no"} if code else {}
            self.send_bytes(status, b"{}", {**about, **(headers or {})})

        def send(self, value: Any) -> None:
            headers = {"Content-Type": "application/json"}
            self.send_bytes(200, json.dumps(value).encode(), headers)

        def send_bytes(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
