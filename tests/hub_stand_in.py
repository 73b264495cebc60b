"""A local server that answers as the Hugging Face Hub does for data sets: for tests of downloads.

Only what `datasets` and `huggingface_hub` ask for is there: the description of a repository, its
tree, and files with their commit and etag.
"""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    root: Path
    asked: list[str]

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        given = self.rfile.read(size).decode()
        self._answer(body=True, given=given)

    def log_message(self, *_):
        pass

    def _answer(self, *, body: bool, given: str = ""):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            repo = self.root / parts[2] / parts[3]
            if repo.is_dir():
                return self._json(self._api(repo, parts[4:], given), body)
        if parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            file = self.root.joinpath(parts[1], parts[2], *parts[5:])
            if file.is_file():
                return self._send(200, file.read_bytes(), body, "application/octet-stream")
            return self._send(404, b"", body, "text/plain", code="EntryNotFound")
        return self._send(404, b"{}", body, "application/json", code="RepoNotFound")

    def _api(self, repo: Path, rest: list[str], given: str):
        below = sorted(repo.rglob("*"))
        named = {str(file.relative_to(repo)): file for file in below if file.is_file()}
        if rest[:1] == ["tree"]:
            folder = repo.joinpath(*rest[2:])
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            whole = query.get("recursive", ["false"])[0].lower() == "true"
            found = folder.rglob("*") if whole else folder.glob("*")
            return [_entry(str(path.relative_to(repo)), path) for path in sorted(found)]
        if rest[:1] == ["paths-info"]:
            form = urllib.parse.parse_qs(given)
            paths = form.get("paths") or json.loads(given or "{}").get("paths", [])
            return [_entry(n, named[n]) for n in paths if n in named]
        return {
            "id": f"{repo.parent.name}/{repo.name}",
            "_id": "0",
            "sha": COMMIT,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": name} for name in named],
        }

    def _json(self, value, body: bool):
        self._send(200, json.dumps(value).encode(), body, "application/json")

    def _send(self, status: int, content: bytes, body: bool, kind: str, code: str = ""):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _entry(name: str, path: Path):
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": "0"}
    content = path.read_bytes()
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}


@contextlib.contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves the repositories `root/owner/name`; yields the address and the list of requests."""
    asked: list[str] = []
    handler = type("Handler", (Hub,), {"root": root, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
