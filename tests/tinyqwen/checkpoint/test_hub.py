"""fetch, with the real huggingface_hub client against a hub of our own: a small server on 127.0.0.1.

The client runs in another process, because it reads its variables while it is imported. Nothing leaves this machine.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from tests.tinyqwen.checkpoint.fake_hub import COMMIT, REPO, FakeHub
from tinyqwen.checkpoint import hub, open_checkpoint
from tinyqwen.checkpoint.hub import resolve_model
from tinyqwen.errors import DiskFullError, NetworkError, TinyqwenError, UsageError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def start_hub(make_folder):
    servers = []

    def start(**options) -> FakeHub:
        server = FakeHub(make_folder(name="published", **options))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


CLIENT = """
import json, sys, warnings
from tinyqwen.checkpoint.hub import fetch
from tinyqwen.errors import TinyqwenError

url, calls = sys.argv[1], json.loads(sys.argv[2])
for call in calls:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            answer = {"folder": str(fetch(call.pop("repo", "Qwen/tiny"), **call))}
        except TinyqwenError as error:
            answer = {"error": type(error).__name__, "says": str(error)}
    warned = [str(warning.message) for warning in said if warning.category is UserWarning]
    print(json.dumps({"folder": None, "error": None, **answer, "warned": warned}), flush=True)
"""


@pytest.fixture
def client(tmp_path):
    """client(url, {fetch's arguments}, ...) -> for each call its folder, or its error and what that says."""

    def start(url: str, *calls: dict, **variables: str) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
        environment |= {
            "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **variables,
        }  # fmt: skip
        command = [sys.executable, "-c", CLIENT, url, json.dumps(calls or [{}])]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(url: str, *calls: dict, **variables: str):
        with start(url, *calls, **variables) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        answers = [json.loads(line) for line in out.splitlines()]
        for answer in answers:
            assert answer["error"] is None or (answer["says"].isprintable() and ";" in answer["says"]), answer
            answer["stderr"] = err
        return answers if len(answers) > 1 else answers[0]

    run.start = start
    return run


def test_download_then_offline(start_hub, client):
    server = start_hub()
    online, again, offline, verified = client(server.url, {}, {}, {"offline": True}, {"verify": True})
    folder = Path(online["folder"])
    assert {path.name for path in folder.iterdir()} == {"config.json", SINGLE, "tokenizer.json"}
    assert folder.name == COMMIT and online["stderr"] == ""
    assert online["folder"] == again["folder"] == offline["folder"] == verified["folder"]
    assert server.log.count(f"GET {SINGLE}") == server.log.count("GET config.json") == 1
    open_checkpoint(folder)
    asked = len(server.log)
    assert client(server.url, {"offline": True})["folder"] == str(folder)
    assert client(server.url, {}, HF_HUB_OFFLINE="1")["folder"] == str(folder)
    assert client(server.url, {"revision": COMMIT, "offline": True})["folder"] == str(folder)
    assert len(server.log) == asked, "offline sends nothing"


def test_shards_and_progress(start_hub, client, tmp_path):
    server = start_hub(max_shard_bytes=1300)
    terminal = {"TQDM_POSITION": "-1"}  # the library's word for "draw, although stderr is not a terminal"
    answer = client(server.url, {"progress": True, "verify": True}, **terminal)
    assert len(open_checkpoint(answer["folder"]).files) == 3
    assert "model-00001-of-00003.safetensors" in answer["stderr"]
    assert client(server.url, {}, HF_HUB_CACHE=f"{tmp_path}/other", **terminal)["stderr"] == "", "silent unless asked"


def test_without_weights(start_hub, client):
    server = start_hub(max_shard_bytes=1300)
    small, complete, offline = client(
        server.url, {"weights": False}, {"offline": True}, {"offline": True, "weights": False}
    )
    assert {path.name for path in Path(small["folder"]).iterdir()} == {"config.json", "tokenizer.json"}
    assert "holds only a part" in complete["says"] and offline["folder"] == small["folder"]


@pytest.mark.parametrize(
    ("call", "faults", "error", "says"),
    [
        ({"repo": "Qwen/none"}, {}, "NetworkError", "no such repository on the hub, or no access"),
        ({"repo": "a b"}, {}, "UsageError", "neither a folder here nor a repository's name"),
        ({"repo": "../x"}, {}, "UsageError", "neither a folder here nor a repository's name"),
        ({"revision": "v9"}, {}, "NetworkError", "has no revision 'v9'"),
        ({"offline": True}, {}, "NetworkError", "is not in the cache"),
        ({"offline": True, "verify": True}, {}, "UsageError", "cannot be done offline"),
        ({}, {"api": (401, "GatedRepo")}, "NetworkError", "is gated; accept its terms"),
        ({}, {"config.json": (403, "GatedRepo")}, "NetworkError", "is gated; accept its terms"),
        ({}, {"api": (401, None)}, "NetworkError", "refused (HTTP 401); check HF_TOKEN"),
        ({}, {"api": (403, None)}, "NetworkError", "refused (HTTP 403)"),
        ({}, {"api": (429, None)}, "NetworkError", "refused (HTTP 429); wait"),
        ({}, {"api": (500, None)}, "HubUnreachable", "the hub has a fault (HTTP 500)"),
        ({}, {"api": (200, None)}, "HubUnreachable", "the download failed"),
    ],
)  # fmt: skip
def test_errors(start_hub, client, call, faults, error, says):
    server = start_hub()
    server.faults = {name: lambda handler, how=how: handler.refuse(*how) for name, how in faults.items()}
    answer = client(server.url, call)
    assert (answer["error"], answer["folder"]) == (error, None)
    assert says in answer["says"]


def test_repository_without_safetensors(start_hub, client):
    server = start_hub()
    del server.files[SINGLE]
    assert "has no model.safetensors; choose" in client(server.url)["says"]


def test_index_that_leaves_the_folder(start_hub, client):
    server = start_hub(max_shard_bytes=1300)
    server.files[INDEX] = b'{"weight_map": {"x": "../../../x.safetensors"}}'
    answer = client(server.url)
    assert answer["error"] == "ModelFilesError" and "not the plain name" in answer["says"]


def test_no_connection_uses_a_complete_copy(start_hub, client):
    server = start_hub()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    answer = client(nobody)
    assert answer["error"] == "HubUnreachable" and "no connection to the hub" in answer["says"]
    folder = client(server.url)["folder"]
    answer = client(nobody)
    assert answer["folder"] == folder and "the copy in the cache is used" in answer["warned"][0]
    server.faults = {"api": lambda handler: handler.refuse(503)}
    answer = client(server.url)
    assert answer["folder"] == folder and "HTTP 503" in answer["warned"][0]
    server.faults = {"api": lambda handler: handler.refuse(404, "RepoNotFound")}
    assert client(server.url)["error"] == "NetworkError", "only an outage is no answer"


def test_broken_download_is_completed_by_the_next_call(start_hub, client):
    server = start_hub(max_shard_bytes=1300)
    last = "model-00003-of-00003.safetensors"

    def drop(handler):
        if handler.command == "HEAD":
            return handler.serve(last)
        if server.log.count(f"GET {last}") > 1:  # the client tries to go on
            return handler.refuse(500)
        handler.serve(last, limit=100)
        handler.close_connection = True

    server.faults = {last: drop}
    broken, offline = client(server.url, {}, {"offline": True})
    assert broken["error"] == "HubUnreachable", broken
    assert offline["error"] == "NetworkError" and f"only a part of it ({last} is missing)" in offline["says"]
    server.faults = {}
    server.log.clear()
    open_checkpoint(client(server.url, {"verify": True})["folder"])
    assert "GET model-00001-of-00003.safetensors" not in server.log, "what was complete is not fetched again"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_interrupt(start_hub, client):
    server = start_hub()
    reached = threading.Event()

    def stall(handler):
        if handler.command == "HEAD":
            return handler.serve(SINGLE)
        handler.serve(SINGLE, limit=100)
        handler.wfile.flush()
        reached.set()
        time.sleep(3)

    server.faults = {SINGLE: stall}
    with client.start(server.url) as process:
        assert reached.wait(20)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and "KeyboardInterrupt" in err
    server.faults = {}
    open_checkpoint(client(server.url)["folder"])


def test_wrong_bytes_are_found(start_hub, client):
    server = start_hub()
    folder = Path(client(server.url)["folder"])
    for name in (SINGLE, "tokenizer.json"):
        blob, good = (folder / name).resolve(), server.files[name]
        blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        answer = client(server.url, {"verify": True})
        assert answer["error"] == "ModelFilesError" and "the hash differs" in answer["says"]
        assert str(folder / name) in answer["says"] and f"delete {blob} and run" in answer["says"]
        blob.unlink()
        assert client(server.url, {"verify": True})["folder"] == str(folder)
        assert (folder / name).read_bytes() == good


def test_a_cached_file_of_wrong_size_is_fetched_again(start_hub, client):
    server = start_hub()
    folder = Path(client(server.url)["folder"])
    os.truncate((folder / SINGLE).resolve(), 50)
    assert client(server.url)["folder"] == str(folder)
    open_checkpoint(folder)


# ---- in this process: what needs no server --------------------------------------------------------------------------


def listing_of(*files):
    return [hub.HubFile(name, size, None, None) for name, size in files]


def test_room_is_checked_before_byte_one(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda place: namedtuple("usage", "free")(2_500_000_000))
    hub.check_room(REPO, COMMIT, listing_of(("a", 2_500_000_000)))
    with pytest.raises(DiskFullError, match=r"needs 3.5 GB in .*, but only 2.5 GB are free there; make room"):
        hub.check_room(REPO, COMMIT, listing_of(("a", 2_500_000_000), ("b", 1_000_000_000)))
    blobs = tmp_path / "not" / "there" / "yet" / "models--Qwen--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc").write_text("")
    hub.check_room(REPO, COMMIT, [hub.HubFile("b", 9_000_000_000, "abc", None)])


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(28, "No space left on device"), DiskFullError, "the disk became full"),
        (PermissionError(13, "no", "/x"), UsageError, "/x: cannot be written; set HF_HOME"),
        (
            OSError("Consistency check failed:\nfile should be of size 3"),
            NetworkError,
            "Consistency check failed: file",
        ),
    ],
)
def test_errors_of_the_disk(error, kind, says):
    with pytest.raises(kind) as caught, hub.clear_errors(REPO, None):
        raise error
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_our_own_errors_and_bugs_pass_through():
    for error in (UsageError("x"), KeyboardInterrupt(), TypeError("bug")):
        with pytest.raises(type(error)) as caught, hub.clear_errors(REPO, None):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model": None}, "give either --model FOLDER_OR_REPOSITORY or --size SIZE"),
        ({"model": "x", "size": "0.5B"}, "not both"),
        ({"model": None, "size": "8B"}, "no size '8B'; there are 0.5B, 1.5B, 7B"),
        ({"model": "x", "base": True}, "--base goes with --size"),
        ({"model": "x"}, "'x' is neither a folder here nor a repository's name"),
        ({"model": "./no/such"}, "./no/such: no such folder"),
        ({"model": "/no/such"}, "/no/such: no such folder"),
        ({"model": __file__}, "is a file; name the folder"),
    ],
)
def test_resolve_refuses(arguments, says):
    with pytest.raises(UsageError, match=says):
        resolve_model(**arguments)


def test_resolve(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda repo_id, **options: asked.append((repo_id, options)) or Path("fetched"))
    monkeypatch.chdir(tmp_path)
    Path("Qwen").mkdir()
    assert resolve_model("Qwen") == Path("Qwen")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/Qwen") == tmp_path / "Qwen" and resolve_model("./Qwen") == Path("Qwen")
    assert not asked
    assert resolve_model("Qwen/Qwen2-0.5B", revision="v1") == Path("fetched")
    resolve_model(None, "2.5-3B", offline=True)
    resolve_model(None, "72B", base=True)
    assert [repo for repo, _ in asked] == ["Qwen/Qwen2-0.5B", "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2-72B"]
    assert asked[0][1]["revision"] == "v1" and asked[1][1]["offline"]
    assert issubclass(hub.HubUnreachable, TinyqwenError)
