"""A hub on this machine: the routes that huggingface_hub uses to make a repository, write to it and read from it.

It takes what the real one takes and nothing else: a token, checksums that are right, a card whose head is YAML, and a
commit of files that have come. Blobs of LFS come first, then the commit, which holds or does not.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN = "hf_only_this_one"


@dataclass
class Hub:
    """What the hub holds. files: of a repository by name. failing: route -> the status that it answers."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, Any] = field(default_factory=dict)
    commits: list[tuple[str, str]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A hub that serves until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(self.chunks())
            path = unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            status = next((status for route, status in hub.failing.items() if route in path), None)
            if status is not None:
                self.answer(status, {"error": f"this hub fails with {status}"})
            elif not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid credentials in Authorization header"})
            else:
                self.route(path, body)

        do_GET = do_POST = do_PUT = do_HEAD = do

        def chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def answer(self, status: int, content: Any = b"", **headers: str) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if isinstance(content, bytes):
                self.send_header("Content-Type", "application/octet-stream")
            else:
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def route(self, path: str, body: bytes) -> None:
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if path == "/api/validate-yaml":
                return self.validate(json.loads(body)["content"])
            if found := re.fullmatch(r"/lfs/(\w+)", path):
                right = hashlib.sha256(body).hexdigest() == found[1]
                if right:
                    hub.blobs[found[1]] = body
                return self.answer(200 if right else 400)
            if found := re.fullmatch(r"/(\S+)\.git/info/lfs/objects/batch", path):
                return self.answer(200, {"objects": [self.upload(one) for one in json.loads(body)["objects"]]})
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(tree|preupload|commit|revision)/\w+", path)
            found = found or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/\w+/(\S+)", path)
            if found is None or found[1] not in hub.files:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            getattr(self, found[2])(found[1], *(found.groups()[2:] or (body,)))

        def create(self, asked: dict[str, Any]) -> None:
            repo = f"{asked['organization'] or 'me'}/{asked['name']}"
            if asked["organization"] not in (None, "me"):
                return self.answer(403, {"error": f"You may not write to {asked['organization']}"})
            there = repo in hub.files
            hub.files.setdefault(repo, {".gitattributes": b""})
            hub.private.setdefault(repo, asked.get("visibility"))
            self.answer(409 if there else 200, {"url": f"{hub.address}/{repo}"})

        def validate(self, card: str) -> None:
            head = re.match(r"---\n(.*?)\n---\n", card, re.S)
            try:
                fine = head is not None and isinstance(yaml.safe_load(head[1]), dict)
            except yaml.YAMLError:
                fine = False
            self.answer(200 if fine else 400, {"errors": [] if fine else [{"message": "no YAML"}], "warnings": []})

        def upload(self, one: dict[str, Any]) -> dict[str, Any]:
            have = one["oid"] in hub.blobs
            return one | ({} if have else {"actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}})

        def tree(self, repo: str, _: bytes) -> None:
            files = hub.files[repo].items()
            self.answer(200, [{"type": "file", "path": n, "size": len(x), "oid": "0" * 40} for n, x in files])

        def preupload(self, repo: str, body: bytes) -> None:
            files = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            modes = {f["path"]: mode[f["path"].endswith(".safetensors")] for f in files}
            self.answer(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

        def commit(self, repo: str, body: bytes) -> None:
            head, *rest = [json.loads(line) for line in body.splitlines()]
            files = dict(hub.files[repo])
            for one in rest:
                value = one["value"]
                if one["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif one["key"] == "lfsFile":
                    if (blob := hub.blobs.get(value["oid"])) is None or len(blob) != value["size"]:
                        return self.answer(400, {"error": f"{value['path']} has not come"})
                    files[value["path"]] = blob
                elif files.pop(value["path"], None) is None:
                    return self.answer(400, {"error": f"{value['path']} is not there"})
            hub.files[repo] = files
            hub.commits.append((repo, head["value"]["summary"]))
            oid = hashlib.sha1(body).hexdigest()
            self.answer(200, {"commitUrl": f"{hub.address}/{repo}/commit/{oid}", "commitOid": oid})

        def revision(self, repo: str, _: bytes) -> None:
            files = [{"rfilename": name} for name in hub.files[repo]]
            self.answer(200, {"id": repo, "sha": "1" * 40, "siblings": files, "tags": []})

        def resolve(self, repo: str, name: str) -> None:
            content = hub.files[repo].get(name)
            if content is None:
                return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit="1" * 40)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
