"""A hub with one repository, on 127.0.0.1: a server that answers as huggingface.co does, as far as its client asks."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO, COMMIT = "Qwen/tiny", "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """One repository.

    files     name -> content; safetensors count as large files (LFS)
    faults    name -> a function of the handler that answers instead; "api" for the listing
    log       the requests, as "METHOD name"
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.files |= {"README.md": b"# tiny", "tokenizer.json": b"{}", "pytorch_model.bin": b"pickle"}
        self.faults: dict = {}
        self.log: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """A client that went away is part of the tests."""


class Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        name = "api" if path.startswith("/api/models/") else path.rsplit("/", 1)[-1]
        self.server.log.append(f"{self.command} {name}")
        known = path.startswith((f"/api/models/{REPO}", f"/{REPO}/resolve/"))
        if not known:
            return self.refuse(404, "RepoNotFound")
        parts = path.split("/")
        revision = parts[5] if name == "api" and len(parts) > 5 else parts[4] if name != "api" else "main"
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if fault := self.server.faults.get(name):
            return fault(self)
        self.serve(name)

    def serve(self, name, limit=None):
        if name == "api":
            return self.send(json.dumps(self.listing()).encode())
        if name not in self.server.files:
            return self.refuse(404, "EntryNotFound")
        content = self.server.files[name]
        self.send(content, {"ETag": f'"{etag(name, content)}"', "X-Repo-Commit": COMMIT}, limit)

    def send(self, content, headers=(), limit=None):
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        for header, value in dict(headers).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:limit])

    def refuse(self, status, code=None):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def listing(self):
        siblings = []
        for name, content in self.server.files.items():
            entry = {"rfilename": name, "size": len(content), "blobId": git_id(content)}
            if name.endswith((".safetensors", ".bin")):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"_id": "1", "id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "siblings": siblings,
                "downloads": 0, "likes": 0, "tags": []}  # fmt: skip


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith((".safetensors", ".bin")) else git_id(content)
