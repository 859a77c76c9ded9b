"""A stand-in for the Hub's writing side, on top of the one for its reading side: repositories are folders."""

import base64
import json
import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from downloading import fakehub


def serve_hub(root: Path) -> Any:
    """Serve a folder of repositories, to write to with the token `hf_test`; return the server, which has `url`.

    `server.private` says which repositories are, `server.commits` holds the operations of each commit, `server.refused`
    a status that writing is answered with. A listing has `server.page_size` files on a page, 0 for all, and says that
    the next one is at `server.next_url`.
    """
    module = fakehub()

    class Handler(module.Handler):  # type: ignore[name-defined, misc]
        def repo(self, kind: str, repo: str) -> dict[str, Any]:
            return {**super().repo(kind, repo), "private": self.server.private.get(repo, False)}

        def send(self, code: int, body: bytes = b"", **headers: Any) -> None:
            if self.command == "POST":  # the other side only reads
                self.head(code, len(body), **headers)
                self.wfile.write(body)
            else:
                super().send(code, body, **headers)

        def api(self, path: str, query: dict[str, list[str]]) -> None:
            if path == "/api/whoami-v2":
                self.json({"type": "user", "name": "me", "fullname": "Me", "orgs": [], "auth": {}})
                return
            super().api(path, query)

        def json(self, found: Any) -> None:
            if not isinstance(found, list) or not self.server.page_size:
                super().json(found)
                return
            parts = urlsplit(self.path)
            start = int(parse_qs(parts.query).get("cursor", ["0"])[0])
            stop = start + self.server.page_size
            link = f'<{self.server.next_url}{parts.path}?recursive=true&cursor={stop}>; rel="next"'
            body = json.dumps(found[start:stop]).encode()
            self.send(200, body, Content_Type="application/json", Link=link if stop < len(found) else None)

        def do_POST(self) -> None:  # noqa: N802 - http.server's name
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != "Bearer hf_test" or self.server.refused:
                self.send(self.server.refused or 401, b"{}", Content_Type="application/json")
            elif self.path == "/api/validate-yaml":
                self.json({"errors": [], "warnings": []})
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
                (Path(self.server.root) / repo).mkdir(parents=True)
                self.server.private[repo] = asked.get("private", asked.get("visibility") == "private")
                self.json({"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})
            elif found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/(preupload|commit)/main", self.path):
                getattr(self, found[2])(found[1], body)
            elif found := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
                self.batch(json.loads(body))
            else:
                self.missing("Entry")

        def preupload(self, repo: str, body: bytes) -> None:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(module.BINARY) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.json({"files": files})

        def batch(self, asked: dict[str, Any]) -> None:
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
                for one in asked["objects"]
            ]
            self.json({"transfer": "basic", "objects": objects})

        def do_PUT(self) -> None:  # noqa: N802 - http.server's name
            self.server.blobs[self.path.rsplit("/", 1)[1]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send(200)

        def commit(self, repo: str, body: bytes) -> None:
            operations = [json.loads(line) for line in body.splitlines()]
            self.server.commits.append(operations)
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "header":
                    continue
                file = Path(self.server.root) / repo / value["path"]
                if operation["key"] == "deletedFile":
                    file.unlink()
                    continue
                file.parent.mkdir(parents=True, exist_ok=True)
                is_large = operation["key"] == "lfsFile"
                file.write_bytes(self.server.blobs[value["oid"]] if is_large else base64.b64decode(value["content"]))
            self.json({"success": True, "commitOid": module.COMMIT, "commitUrl": f"{self.server.url}/{repo}/commit/1"})

    root.mkdir(exist_ok=True)
    server = module.Hub(root)
    server.RequestHandlerClass = Handler
    server.private, server.commits, server.blobs, server.refused = {}, [], {}, 0
    server.page_size, server.next_url = 0, server.url
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server
