"""A server on this machine that answers as the Hugging Face hub does, for the real client."""

import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".npz")  # files that the hub keeps in Git LFS: their download is redirected


class Repository:
    """Files by name for each revision, and what the hub says about them."""

    def __init__(self, files, *, card=None, gated=False, token=None, **revisions):
        self.revisions = {"main": files, **revisions}
        self.card, self.gated, self.token = card, gated, token

    @staticmethod
    def commit(files) -> str:
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def find(self, revision):
        by_commit = {self.commit(files): files for files in self.revisions.values()}
        return self.revisions.get(revision, by_commit.get(revision))


def etag(name, content) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    """Serves `repositories` by "ORG/REPO".

    Attributes:
        requests: method, path and Range header of each request.
        cut: names of files whose next download ends in the middle.
        changed: content that downloads have instead of that of the repository, by name of the file.
        lost: names of files for which the answer is status 500.
        status: if not None, the status of every answer.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.requests, self.status = {}, [], None
        self.cut, self.lost, self.changed = set(), set(), {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.downloads = f"http://localhost:{self.server_port}"  # another host, as the hub's storage is
        self.thread = threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.01))
        self.thread.start()

    def stop(self):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def downloaded(self) -> list[str]:
        """Names of files whose content was asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/api/" not in path]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if hub.status:
            return self.answer(hub.status)
        if match := re.fullmatch(r"/api/models/(\w+/[\w.-]+)(?:/revision/(.+))?", path):
            return self.info(match[1], match[2] or "main")
        if match := re.fullmatch(r"/(storage/)?(\w+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return self.file(*match.groups())
        return self.answer(404)

    def find(self, name, revision):
        """The files of a revision, or None after an error was sent."""
        repository = self.server.repositories.get(name)
        if repository is None:  # the hub does not tell strangers which repositories exist
            return self.answer(401, {"X-Error-Message": "Invalid username or password."})
        files = repository.find(revision)
        return self.answer(404, {"X-Error-Code": "RevisionNotFound"}) if files is None else files

    def info(self, name, revision):
        if (files := self.find(name, revision)) is None:
            return
        repository = self.server.repositories[name]
        siblings = []
        for file, content in files.items():
            large = dict(lfs=dict(sha256=etag(file, content), size=len(content), pointerSize=134))
            tag = "0" * 40 if file.endswith(LARGE) else etag(file, content)
            siblings.append(
                dict(rfilename=file, size=len(content), blobId=tag) | (large if file.endswith(LARGE) else {})
            )
        self.answer(
            200,
            content=json.dumps(
                dict(
                    id=name,
                    sha=repository.commit(files),
                    gated=repository.gated,
                    private=False,
                    tags=[],
                    cardData=repository.card,
                    siblings=siblings,
                )
            ).encode(),
        )

    def file(self, storage, name, revision, file):
        if (files := self.find(name, revision)) is None:
            return
        repository = self.server.repositories[name]
        headers = {"X-Repo-Commit": repository.commit(files)}
        authorization = self.headers.get("Authorization")
        if storage:
            assert authorization is None, "a token was sent to another host"
        elif repository.gated and authorization != f"Bearer {repository.token}":
            return self.answer(403 if authorization else 401, {"X-Error-Code": "GatedRepo"})
        if file in self.server.lost:
            return self.answer(500)
        if file not in files:
            return self.answer(404, headers | {"X-Error-Code": "EntryNotFound"})
        content = files[file]
        if file.endswith(LARGE) and not storage:
            location = f"{self.server.downloads}/storage/{name}/resolve/{revision}/{file}"
            headers |= {"Location": location, "X-Linked-Etag": f'"{etag(file, content)}"'}
            return self.answer(302, headers | {"X-Linked-Size": str(len(content))})
        self.answer(200, headers | {"ETag": f'"{etag(file, content)}"'}, self.server.changed.get(file, content), file)

    def answer(self, status, headers=(), content=b"", file=None):
        part = content
        if status == 200 and (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            status, part = 206, content[int(match[1]) :]
            headers = dict(headers) | {"Content-Range": f"bytes {match[1]}-{len(content) - 1}/{len(content)}"}
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            if file in self.server.cut:
                self.server.cut.remove(file)
                part, self.close_connection = part[: len(part) // 2], True
            self.wfile.write(part)

    def log_message(self, *args):
        pass
