"""Ids of the Hub (here a small server): what is asked for, what never is, and one clear error."""

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxllada.common.errors import UserError
from jaxllada.common.weights.hub import is_hub_id, local_folder
from tests.jax.golden import DENSE

ROOT = Path(__file__).parents[2]
COMMIT = "a" * 40


def sha1(content):
    return hashlib.sha1(content).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves a folder as the model `owner/tiny`, with the routes a download takes."""

    def __init__(self, *args, folder, asked):
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body):
        path = self.path.split("?")[0]
        names = sorted(file.name for file in self.folder.iterdir())
        if path.startswith("/api/models/owner/tiny/tree/"):
            files = [(name, (self.folder / name).read_bytes()) for name in names]
            body = json.dumps(
                [{"type": "file", "path": n, "size": len(b), "oid": sha1(b)} for n, b in files]
            ).encode()
        elif path.startswith("/api/models/owner/tiny"):
            files = [{"rfilename": name} for name in names]
            about = {"id": "owner/tiny", "sha": COMMIT, "siblings": files}
            body = json.dumps(about).encode()
        elif path.startswith(f"/owner/tiny/resolve/{COMMIT}/"):
            name = path.rsplit("/", 1)[1]
            self.asked.append(name)
            body = (self.folder / name).read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{sha1(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path):
    """(address, names of the files that were asked for) of a model with code and pickles."""
    folder = tmp_path / "served"
    shutil.copytree(DENSE, folder)
    for name in ("modeling_llada.py", "pytorch_model.bin", "tokenizer.json", "README.md"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    asked: list[str] = []
    handler = functools.partial(Hub, folder=folder, asked=asked)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(name, home, endpoint="http://127.0.0.1:9", offline="0", weights=True):
    """Runs `local_folder` in a process of its own: the client reads its settings once."""
    program = (
        "import sys\n"
        "from jaxllada.common.errors import UserError\n"
        "from jaxllada.common.weights.hub import local_folder\n"
        "try: print(local_folder(sys.argv[1], weights=sys.argv[2] == 'True'))\n"
        "except UserError as error: sys.exit(f'error: {error}')\n"
    )
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline}
    plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", program, name, str(weights)], cwd=ROOT,
        env={**os.environ, **settings, **plain},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout.strip(), done.stderr.strip().splitlines()[-1:]


def test_neither_code_nor_pickles_are_downloaded_and_the_cache_serves_offline(hub, tmp_path):
    endpoint, asked = hub
    code, folder, errors = fetch("owner/tiny", tmp_path / "home", endpoint)
    assert code == 0, errors
    wanted = {
        "config.json", "golden.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
        "chat_template.jinja", "README.md",
    }  # fmt: skip
    assert {file.name for file in Path(folder).iterdir()} == set(asked) == wanted
    for name in wanted - {"tokenizer.json", "chat_template.jinja", "README.md"}:
        assert (Path(folder) / name).read_bytes() == (DENSE / name).read_bytes()
    assert fetch("owner/tiny", tmp_path / "home", offline="1")[:2] == (0, folder)


def test_looking_at_a_model_downloads_no_weights(hub, tmp_path):
    code, folder, errors = fetch("owner/tiny", tmp_path / "home", hub[0], weights=False)
    assert code == 0, errors
    names = {file.name for file in Path(folder).iterdir()}
    assert "config.json" in names
    assert not any(name.endswith(".safetensors") for name in names)


@pytest.mark.parametrize(
    ("name", "offline", "reason"),
    [("owner/none", "0", "RepositoryNotFoundError"), ("owner/tiny", "1", "LocalEntryNotFound")],
)
def test_what_cannot_be_had_is_one_line(hub, tmp_path, name, offline, reason):
    code, _, errors = fetch(name, tmp_path / "home", hub[0], offline)
    assert code == 1
    assert errors[0].startswith(f"error: {name}: no such folder, and it cannot be downloaded")
    assert reason in errors[0]
    assert errors[0].endswith("give the path of a folder")


def test_paths_come_before_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert local_folder("owner/name") == Path("owner/name")
    for name in ("owner/nme", "nowhere", "./a/b", "a/b/c", "/a/b", ""):
        assert not is_hub_id(name)
    with pytest.raises(UserError, match="owner/nme: no such folder, and not an id of the Hub"):
        local_folder("owner/nme")
    assert is_hub_id("GSAI-ML/LLaDA-8B-Base")
    assert is_hub_id("GSAI-ML/LLaDA-8B-Base@refs/pr/1")
