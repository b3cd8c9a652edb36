"""A small Hub for tests: the HTTP endpoints that ``huggingface_hub`` and ``datasets`` really call, with faults on demand.

It keeps repositories in memory as commits of files, large ones by SHA-256, as the Hub does, and it is as strict: a commit
needs a token that may write, the parent that it names, large files that were uploaded and hold what their name says, and a
card whose metadata follow the Hub's rules.  What it was asked stands in ``requests``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from curate.report.card import LICENCES

TOKEN = "hf_ThisIsTheSecretOfTheTests0123456789"
ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"
SIZES = {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B"}


@dataclass
class Blob:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name: of a large file, that of its pointer."""
        data = self.data
        if self.lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    """What each commit did: branch, message, files added and deleted."""
    gated: bool = False

    def commit(self, branch: str, files: dict[str, Blob], **said: Any) -> str:
        parent = self.branches.get(branch, "")
        names = json.dumps([parent, said.get("message", ""), sorted((p, b.oid) for p, b in files.items())])
        sha = hashlib.sha1(names.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.log.append({"branch": branch, "sha": sha, **said})
        return sha

    def files(self, revision: str = "main") -> dict[str, Blob]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class User:
    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()
    expired: bool = False


@dataclass
class Fault:
    """What goes wrong with requests that match, for a number of times."""

    match: str
    """Searched in "METHOD /path"."""
    what: str = "500"
    """A status, "cut" (the connection ends while the body is sent), "lose" (the work is done, the answer lost), "go"."""
    times: int = 1
    after: int = 0
    """Requests that go well first."""
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "out of order"
    """What the Hub says; "{authorization}" stands for the token that it was sent."""
    before: Callable[[], object] | None = None
    """With "go": something that happens just before the request is served."""


class Hub:
    """The server; ``with Hub() as hub: …`` and ``hub.url`` is its endpoint."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.users: dict[str, User] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[tuple[str, str, int]] = []
        """(method, path, bytes of the body)."""
        self.ranges: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.waits: list[float] = []
        """Seconds that a client in this process would have waited."""
        self.multipart_bytes: int | None = None
        self.page = 1000
        self.lock = threading.RLock()

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.cdn = self.url.replace("127.0.0.1", "localhost")  # another host, as far as a client can tell
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: dict[str, bytes] | None = None, *, private: bool = False) -> Repository:
        """Make a repository, as somebody else would."""
        repository = Repository(private)
        blobs = {".gitattributes": Blob(ATTRIBUTES, False)}
        for path, data in (files or {}).items():
            blobs[path] = Blob(data, path.endswith(".parquet"))
        repository.commit("main", blobs, message="initial commit", add=sorted(blobs), delete=[])
        self.repositories[name] = repository
        return repository

    def put(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files to a repository, as somebody else would."""
        repository = self.repositories[name]
        now = dict(repository.files(branch)) if branch in repository.branches else {}
        now |= {path: Blob(data, path.endswith(".parquet")) for path, data in files.items()}
        return repository.commit(branch, now, message="by hand", add=sorted(files), delete=[])

    def writes(self) -> list[tuple[str, str, int]]:
        """Requests that could change something: all but GET and HEAD, and POSTs that only ask."""
        return [r for r in self.requests if r[0] not in ("GET", "HEAD") and "/paths-info/" not in r[1]]

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        self.faults = list(faults)
        try:
            yield
        finally:
            self.faults = []


class Answer(Exception):
    """An HTTP answer that ends the handling of a request."""

    def __init__(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}


def refusal(status: int, message: str, code: str | None = None) -> Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, {"error": message}, headers)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    # -- the frame -----------------------------------------------------------------------------------------------------

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.where, self.query = parts.path, parse_qs(parts.query)
        fault = self._fault()
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.what == "cut":
            self.rfile.read(length // 2)
            self.hub.requests.append((self.command, self.where, length // 2))
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length) if length else self._chunked()
        self.hub.requests.append((self.command, self.where, len(body)))
        try:
            if fault and fault.before:
                fault.before()
            if fault and fault.what not in ("lose", "go"):
                told = fault.message.replace("{authorization}", self.headers.get("Authorization", ""))
                raise Answer(int(fault.what), {"error": told}, {"X-Error-Message": told, **fault.headers})
            with self.hub.lock:
                self._route(body)
        except Answer as answer:
            if fault and fault.what == "lose":
                self.close_connection = True
                self.connection.close()
                return
            self._answer(answer)

    def _fault(self) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if re.search(fault.match, f"{self.command} {self.where}"):
                    if fault.after > 0:
                        fault.after -= 1
                    elif fault.times > 0:
                        fault.times -= 1
                        return fault
        return None

    def _chunked(self) -> bytes:
        out = b""
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return out

    def _answer(self, answer: Answer) -> None:
        data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        data = b"" if answer.body is None else data
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # -- who is there ----------------------------------------------------------------------------------------------------

    def _user(self) -> User | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            return None
        user = self.hub.users.get(token)
        if user is None:
            raise refusal(401, "Invalid credentials in Authorization header")
        if user.expired:
            raise refusal(401, 'User Access Token "laptop" is expired')
        return user

    def _repository(self, name: str) -> Repository:
        user = self._user()
        found = self.hub.repositories.get(name)
        mine = user and name.split("/")[0] in (user.name, *user.orgs)
        if found is None or (found.private and not mine):
            raise refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if found.gated and not mine:
            raise refusal(403 if user else 401, f"Access to dataset {name} is restricted", "GatedRepo")
        return found

    def _may_write(self, name: str) -> None:
        user = self._user()
        if user is None:
            raise refusal(401, "Invalid username or password.")
        if name.split("/")[0] not in (user.name, *user.orgs) or user.role == "read":
            raise refusal(403, f"You don't have the rights to write to {name}")

    def _commit(self, repository: Repository, revision: str) -> str:
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # -- routes ----------------------------------------------------------------------------------------------------------

    def _route(self, body: bytes) -> None:
        name = r"(?P<repo>[^/]+/[^/]+)"
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate_yaml),
            ("GET", rf"/api/datasets/{name}", self._info),
            ("GET", rf"/api/datasets/{name}/revision/(?P<revision>[^/]+)", self._info),
            ("GET", rf"/api/datasets/{name}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", self._tree),
            ("POST", rf"/api/datasets/{name}/paths-info/(?P<revision>[^/]+)", self._paths_info),
            ("GET", rf"/api/datasets/{name}/refs", self._refs),
            ("POST", rf"/api/datasets/{name}/branch/(?P<revision>.+)", self._branch),
            ("POST", rf"/api/datasets/{name}/preupload/(?P<revision>[^/]+)", self._preupload),
            ("POST", rf"/datasets/{name}\.git/info/lfs/objects/batch", self._lfs_batch),
            ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", self._lfs_put),
            ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", self._lfs_put),
            ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", self._lfs_complete),
            ("POST", rf"/lfs/{name}/verify", self._lfs_verify),
            ("POST", rf"/api/datasets/{name}/commit/(?P<revision>[^/]+)", self._make_commit),
            ("GET|HEAD", rf"/datasets/{name}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._resolve),
            ("GET|HEAD", r"/cdn/(?P<oid>[0-9a-f]{64})", self._cdn),
        ]
        for method, pattern, function in routes:
            found = re.fullmatch(pattern, self.where)
            if found and self.command in method.split("|"):
                words = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
                function(body=body, **words)
        raise refusal(404, f"no such endpoint: {self.command} {self.where}")

    def _whoami(self, body: bytes) -> None:
        user = self._user()
        if user is None:
            raise refusal(401, "Invalid username or password.")
        token = {"displayName": "laptop", "role": user.role}
        orgs = [{"name": org, "type": "org"} for org in user.orgs]
        raise Answer(
            200,
            {"type": "user", "name": user.name, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}},
        )

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        user = self._user()
        name = f"{asked.get('organization') or (user.name if user else '')}/{asked['name']}"
        self._may_write(name)
        assert asked["type"] == "dataset"
        if name in self.hub.repositories:
            url = f"{self.hub.url}/datasets/{name}"
            raise Answer(409, {"error": "You already created this dataset repo", "url": url})
        private = asked["visibility"] == "private" if "visibility" in asked else bool(asked.get("private"))
        self.hub.add(name, private=private)
        raise Answer(200, {"url": f"{self.hub.url}/datasets/{name}", "name": name, "id": "1"})

    def _info(self, body: bytes, repo: str, revision: str = "main") -> None:
        repository = self._repository(repo)
        sha = self._commit(repository, revision)
        files = repository.commits[sha]
        head = _front_matter(files["README.md"].data.decode()) if "README.md" in files else None
        told = {
            "id": repo,
            "author": repo.split("/")[0],
            "sha": sha,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(files)],
            "cardData": head,
        }
        raise Answer(200, {k: v for k, v in told.items() if v is not None})

    def _refs(self, body: bytes, repo: str) -> None:
        refs = self._repository(repo).branches.items()
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in refs]
        raise Answer(200, {"branches": branches, "tags": [], "converts": []})

    def _tree(self, body: bytes, repo: str, revision: str, path: str = "") -> None:
        repository = self._repository(repo)
        files = repository.commits[self._commit(repository, revision)]
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        prefix = f"{path}/" if path else ""
        for name, blob in sorted(files.items()):
            if not name.startswith(prefix):
                continue
            below = name[len(prefix) :].split("/")
            for depth in range(1, len(below)):
                folder = prefix + "/".join(below[:depth])
                if recursive or depth == 1:
                    entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or len(below) == 1:
                entries[name] = _entry(name, blob)
        if path and not entries:
            raise refusal(404, f"{path} does not exist", "EntryNotFound")
        start = int(self.query.get("cursor", ["0"])[0])
        told = list(entries.values())
        headers = {}
        if start + self.hub.page < len(told):
            again = f"recursive={recursive}&cursor={start + self.hub.page}"
            headers["Link"] = f'<{self.hub.url}{quote(self.where, safe="/%")}?{again}>; rel="next"'
        raise Answer(200, told[start : start + self.hub.page], headers)

    def _paths_info(self, body: bytes, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        files = repository.commits[self._commit(repository, revision)]
        asked = parse_qs(body.decode())["paths"]
        told = [_entry(p, files[p]) for p in asked if p in files]
        folders = [p for p in asked if p not in files and any(f.startswith(f"{p}/") for f in files)]
        told += [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders]
        raise Answer(200, told)

    def _branch(self, body: bytes, repo: str, revision: str) -> None:
        self._may_write(repo)
        repository = self._repository(repo)
        if revision in repository.branches:
            raise refusal(409, "Reference already exists")
        repository.branches[revision] = self._commit(repository, json.loads(body).get("startingPoint", "main"))
        raise Answer(200, {})

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        self._may_write(repo)
        repository = self._repository(repo)
        files = repository.commits[self._commit(repository, revision)]
        told = []
        for asked in json.loads(body)["files"]:
            base64.b64decode(asked["sample"], validate=True)
            there = files.get(asked["path"])
            large = asked["path"].endswith(".parquet") or asked["size"] > 10 * 2**20
            oid = None if there is None else there.sha256 if there.lfs else there.oid
            told.append(
                {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        raise Answer(200, {"files": told})

    # -- large files -----------------------------------------------------------------------------------------------------

    def _lfs_batch(self, body: bytes, repo: str) -> None:
        self._may_write(repo)
        asked = json.loads(body)
        assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256" and "basic" in asked["transfers"]
        told = []
        for item in asked["objects"]:
            oid, size = item["oid"], item["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                upload: dict[str, Any] = {"href": f"{self.hub.url}/lfs/{oid}"}
                if self.hub.multipart_bytes and size > self.hub.multipart_bytes:
                    chunk = self.hub.multipart_bytes
                    urls = {str(i + 1): f"{self.hub.url}/lfs/{oid}/{i + 1}" for i in range(-(-size // chunk))}
                    upload = {
                        "href": f"{self.hub.url}/lfs/{oid}/complete",
                        "header": {"chunk_size": str(chunk), **urls},
                    }
                verify = {"href": f"{self.hub.url}/lfs/{repo}/verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
            told.append(entry)
        raise Answer(200, {"transfer": "basic", "objects": told}, {"Content-Type": "application/vnd.git-lfs+json"})

    def _lfs_put(self, body: bytes, oid: str, part: str | None = None) -> None:
        if "Authorization" in self.headers:  # the store behind the Hub is somebody else's; the address is signed
            raise refusal(400, "a token was sent to the store")
        if part is None:
            if hashlib.sha256(body).hexdigest() != oid:
                raise refusal(400, "the content is not what its name says")
            self.hub.objects[oid] = body
        else:
            self.hub.parts.setdefault(oid, {})[int(part)] = body
        raise Answer(200, None, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def _lfs_complete(self, body: bytes, oid: str) -> None:
        said = json.loads(body)
        parts = self.hub.parts.pop(oid)
        etags = [f'"{hashlib.md5(parts[i]).hexdigest()}"' for i in sorted(parts)]
        data = b"".join(parts[i] for i in sorted(parts))
        if [p["etag"] for p in said["parts"]] != etags or hashlib.sha256(data).hexdigest() != oid:
            raise refusal(400, "the parts do not make up the object")
        self.hub.objects[oid] = data
        raise Answer(200, {})

    def _lfs_verify(self, body: bytes, repo: str) -> None:
        self._may_write(repo)
        asked = json.loads(body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise refusal(404, "the object is not there")
        raise Answer(200, {})

    # -- commits ---------------------------------------------------------------------------------------------------------

    def _make_commit(self, body: bytes, repo: str, revision: str) -> None:
        self._may_write(repo)
        repository = self._repository(repo)
        if revision not in repository.branches:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head, *operations = [json.loads(line) for line in body.splitlines()]
        assert head["key"] == "header"
        parent = head["value"].get("parentCommit")
        if parent and parent != repository.branches[revision]:
            raise refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files(revision))
        added, deleted = [], []
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "file":
                files[path] = Blob(base64.b64decode(value["content"], validate=True), False)
            elif operation["key"] == "lfsFile":
                if len(self.hub.objects.get(value["oid"], b"")) != value["size"]:
                    raise refusal(400, f"{path}: this large file was not uploaded")
                files[path] = Blob(self.hub.objects[value["oid"]], True)
            elif operation["key"] == "deletedFile":
                if path not in files:
                    raise refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[path]
            else:
                raise refusal(400, f"unknown operation {operation['key']}")
            (deleted if operation["key"] == "deletedFile" else added).append(path)
        if "README.md" in files and (wrong := card_errors(files["README.md"].data.decode())):
            raise refusal(400, "; ".join(wrong))
        sha = repository.commit(revision, files, message=head["value"]["summary"], add=added, delete=deleted)
        url = f"{self.hub.url}/datasets/{repo}/commit/{sha}"
        raise Answer(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def _validate_yaml(self, body: bytes) -> None:
        errors = card_errors(json.loads(body)["content"])
        told = {"errors": [{"message": e} for e in errors], "warnings": []}
        raise Answer(400 if errors else 200, told)

    # -- reading ---------------------------------------------------------------------------------------------------------

    def _resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        repository = self._repository(repo)
        sha = self._commit(repository, revision)
        blob = repository.commits[sha].get(path)
        if blob is None:
            raise Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            self.hub.objects[blob.sha256] = blob.data
            headers |= {"X-Linked-Size": str(len(blob.data)), "X-Linked-ETag": f'"{blob.sha256}"'}
            raise Answer(302, None, {**headers, "Location": f"{self.hub.cdn}/cdn/{blob.sha256}"})
        self._content(blob.data, headers, path)

    def _cdn(self, body: bytes, oid: str) -> None:
        if "Authorization" in self.headers:
            raise refusal(400, "a token was sent to the store")
        self._content(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}, oid)

    def _content(self, data: bytes, headers: dict[str, str], path: str) -> None:
        headers = {**headers, "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            raise Answer(200, data, {**headers, "Content-Length": str(len(data))})
        first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if first > last:
            raise Answer(416, None, {"Content-Range": f"bytes */{len(data)}"})
        self.hub.ranges.append((path, f"{first}-{last}"))
        piece = data[first : last + 1]
        headers |= {"Content-Range": f"bytes {first}-{last}/{len(data)}", "Content-Length": str(len(piece))}
        raise Answer(206, piece, headers)


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.data)}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return entry


def _front_matter(text: str) -> dict[str, Any] | None:
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
    try:
        head = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    return head if isinstance(head, dict) else None


def card_errors(text: str) -> list[str]:
    """Return what is wrong with a card's metadata by the rules that the Hub documents for datasets."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
    if found is None:
        return []
    try:
        head = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    if not isinstance(head, dict):
        return ["the metadata are no mapping"]
    wrong = []

    def many(key: str) -> list[Any]:
        value = head.get(key, [])
        return value if isinstance(value, list) else [value]

    wrong += [
        f'"license" must be one of the list: {w}' for w in many("license") if w not in {*LICENCES, "other", "unknown"}
    ]
    if head.get("license") == "other" and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(head.get("license_name", ""))):
        wrong.append('"license_name" is required with "license: other", in lower case')
    wrong += [
        f'"language" {w!r} is no ISO 639 code' for w in many("language") if not re.fullmatch("[a-z]{2,3}", str(w))
    ]
    wrong += [f'"size_categories" {w!r}' for w in many("size_categories") if w not in SIZES]
    wrong += [
        f'"{k}" must hold text'
        for k in ("tags", "task_categories", "source_datasets")
        for w in many(k)
        if not isinstance(w, str)
    ]
    wrong += [
        f"{key!r} must be text" for key in ("pretty_name", "license_name") if not isinstance(head.get(key, ""), str)
    ]
    names = [c.get("config_name") for c in many("configs") if isinstance(c, dict)]
    if (
        len(names) != len(many("configs"))
        or len(set(names)) != len(names)
        or not all(isinstance(n, str) for n in names)
    ):
        wrong.append('"configs" must be mappings with different "config_name"s')
    for config in many("configs"):
        for item in config.get("data_files", []):
            if set(item) != {"split", "path"} or not re.fullmatch(r"\w+(\.\w+)*", item["split"]):
                wrong.append(f'"data_files" of {config.get("config_name")}: {item}')
    return wrong


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something is so; for what another thread or process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
