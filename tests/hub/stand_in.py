"""A stand-in for the Hugging Face hub on this machine, for ``HF_ENDPOINT``.

It speaks what ``huggingface_hub`` asks when it makes repositories and branches, uploads (inline and
by Git LFS) and downloads. The hub's other transport, Xet, isn't there: ``HF_HUB_DISABLE_XET``.
"""

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
from urllib.parse import parse_qs, unquote, urlsplit

LICENSES = ("mit", "apache-2.0", "bsd-3-clause")


class Refused(Exception):
    """A status code, the hub's own code for it, and a message."""


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": ""})
    """Commit of each branch, empty before the first."""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of each commit by name."""

    def files(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit and files of a branch or commit."""
        commit = self.branches.get(revision, revision)
        if commit and commit not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit or "0" * 40, self.commits.get(commit, {})


class Hub:
    """Repositories by name, and the users of tokens. ``asked`` lists the requests."""

    def __init__(self) -> None:
        self.users = {"hf_me": "me", "hf_you": "you"}
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = ""

    def answer(self, method: str, url: str, token: str | None, body: bytes) -> tuple[Any, ...]:
        """Status code, headers and content of the answer to a request."""
        path, query = unquote(urlsplit(url).path), parse_qs(urlsplit(url).query)
        self.asked.append(f"{method} {path}")
        user = self.users.get(token or "")
        if token and user is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        for verb, pattern, respond in (
            ("POST", "/api/repos/create", self._create),
            ("POST", "/api/validate-yaml", self._validate),
            ("POST", r"/api/models/(.+)/branch/(.+)", self._branch),
            ("POST", r"/api/models/(.+)/preupload/(.+)", self._preupload),
            ("POST", r"/api/models/(.+)/commit/(.+)", self._commit),
            ("POST", r"/(.+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/lfs/(\w+)", self._store),
            ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ):
            found = re.fullmatch(pattern, path)
            if found and verb == method:
                content = respond(user, body, *found.groups())
                if not isinstance(content, tuple):
                    content = (
                        200,
                        {"Content-Type": "application/json"},
                        json.dumps(content).encode(),
                    )
                return content
        raise Refused(404, "", f"no {method} {path} {query}")

    def _of(self, name: str, user: str | None, *, writes: bool = False) -> Repository:
        repository = self.repositories.get(name)
        owner = name.partition("/")[0]
        if repository is None or (repository.private and user != owner):
            raise Refused(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if writes and user != owner:
            raise Refused(403, "", f"you have no write access to {name}")
        return repository

    def _create(self, user: str | None, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        if user != asked["organization"]:
            raise Refused(403, "", f'You don\'t have the rights to create a model under "{name}"')
        url = f"{self.url}/{name}"
        if name in self.repositories:
            there = {"error": "You already created this model repo", "url": url}
            return 409, {}, json.dumps(there).encode()
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repositories[name] = Repository(private)
        return {"url": url}

    def _validate(self, user: str | None, body: bytes) -> Any:
        found = re.search(r"^license: (.+)$", json.loads(body)["content"], re.MULTILINE)
        if found and found[1] not in LICENSES:
            errors = [{"message": f'"license" must be one of [{", ".join(LICENSES)}]'}]
            return 400, {}, json.dumps({"errors": errors, "warnings": []}).encode()
        return {"errors": [], "warnings": []}

    def _branch(self, user: str | None, body: bytes, name: str, branch: str) -> Any:
        branches = self._of(name, user, writes=True).branches
        if branch in branches:
            raise Refused(409, "", "Reference already exists")
        branches[branch] = branches["main"]
        return {}

    def _preupload(self, user: str | None, body: bytes, name: str, revision: str) -> Any:
        self._of(name, user, writes=True).files(revision)
        return {
            "files": [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
        }

    def _batch(self, user: str | None, body: bytes, name: str) -> Any:
        self._of(name, user, writes=True)
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _store(self, user: str | None, body: bytes, oid: str) -> Any:
        assert hashlib.sha256(body).hexdigest() == oid
        self.blobs[oid] = body
        return {}

    def _commit(self, user: str | None, body: bytes, name: str, branch: str) -> Any:
        repository = self._of(name, user, writes=True)
        files = dict(repository.files(branch)[1])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
        commit = hashlib.sha1(repr((len(repository.commits), sorted(files))).encode()).hexdigest()
        repository.commits[commit] = files
        repository.branches[branch] = commit
        return {"success": True, "commitUrl": f"{self.url}/{name}/commit/{commit}"} | {
            "commitOid": commit
        }

    def _info(self, user: str | None, body: bytes, name: str, revision: str | None) -> Any:
        repository = self._of(name, user)
        commit, files = repository.files(revision or "main")
        siblings = [{"rfilename": path, "size": len(each)} for path, each in files.items()]
        for each in siblings:
            content = files[str(each["rfilename"])]
            if str(each["rfilename"]).endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                each["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
        info = {"_id": name, "id": name, "modelId": name, "sha": commit, "siblings": siblings}
        return info | {"private": repository.private, "tags": [], "downloads": 0, "likes": 0}

    def _resolve(self, user: str | None, body: bytes, name: str, revision: str, path: str) -> Any:
        commit, files = self._of(name, user).files(revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content = files[path]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag, "X-Linked-Etag": etag}
        return 200, headers | {"X-Linked-Size": str(len(content))}, content


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """A hub that answers at its ``url`` until the context ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                status, headers, content = hub.answer(self.command, self.path, token, body)
            except Refused as refused:
                status, code, message = refused.args
                content = json.dumps({"error": message}).encode()
                headers = {"X-Error-Code": code, "X-Error-Message": message}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = respond  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
