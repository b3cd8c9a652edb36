"""A real HTTP server that speaks S3 (moto's), counts what is asked of it, and fails on request.

All servers of a process share what they hold: one that was stopped can be followed by another on the same port.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import fsspec
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIACURATETEST",
    "AWS_SECRET_ACCESS_KEY": "the-secret/of+the-test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
Fault = Callable[[str, str, int], int | None]
"""(method, path, how many requests came before) → the HTTP status to fail with, 0 to cut the line, None to serve."""


def s3() -> Any:
    """Return the client's own file system, to look behind the store's back."""
    return fsspec.filesystem("s3", use_listings_cache=False)


_CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


class S3Server:
    """``with S3Server() as server:`` serves at ``server.url``; ``server.fault`` decides which requests fail."""

    def __init__(self, port: int = 0) -> None:
        self.fault: Fault | None = None
        self.seen: list[tuple[str, str]] = []
        self.delay = 0.0
        self.conditional = True
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._server = make_server("127.0.0.1", port, self._serve, threaded=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> S3Server:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away as a server does whose machine was switched off: nothing answers any more."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": self.url}

    def count(self) -> dict[str, int]:
        """Requests so far, by kind: GET, HEAD, PUT, DELETE, LIST, POST."""
        return dict(collections.Counter(kind for kind, _ in self.seen))

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        kind = "LIST" if method == "GET" and ("list-type" in query or "uploads" in query) else method
        with self._lock:
            before = len(self.seen)
            self.seen.append((kind, path))
            status = self.fault(kind, path, before) if self.fault else None
        if self.delay:
            time.sleep(self.delay)
        if not self.conditional:  # as servers do that know no conditions
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if status is None:
            return self._app(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if status == 0:
            environ["werkzeug.socket"].close()
            return [b""]
        code = _CODES.get(status, "Failure")
        start(f"{status} {code}", [("Content-Type", "application/xml")])
        return (
            []
            if method == "HEAD"
            else [f"<Error><Code>{code}</Code><Message>{code} by the test</Message></Error>".encode()]
        )
