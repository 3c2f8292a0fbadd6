"""The program behind ``gisthost``: serves over real HTTP whatever it is told to answer.

Started without site-packages, so that it is up in no time; prints its port.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MISSING = {"status": 404, "headers": {}, "body": base64.b64encode(b"{}").decode()}


class _Handler(BaseHTTPRequestHandler):
    """Plays the answers; ``said`` and ``seen`` are those of all tests."""

    said: dict[str, list[dict[str, Any]]] = {}  # noqa: RUF012 - shared by all requests
    seen: list[dict[str, Any]] = []  # noqa: RUF012
    lock = threading.Lock()

    def do_POST(self) -> None:
        value = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply: Any = None
        with self.lock:
            if self.path == "/_says":
                self.said[value["path"]] = value["answers"]
            else:
                reply = [entry for entry in self.seen if value["about"] in entry["path"]]
        body = base64.b64encode(json.dumps(reply).encode()).decode()
        self._play({"status": 200, "headers": {}, "body": body})

    def do_GET(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        with self.lock:
            self.seen.append({"path": self.path, "headers": headers})
            waiting = self.said.get(self.path, [])
            step = waiting.pop(0) if len(waiting) > 1 else (waiting or [None])[0]
        with contextlib.suppress(OSError):
            self._play(step or MISSING, headers)

    def _play(self, step: dict[str, Any], asked: Mapping[str, str] | None = None) -> None:
        body = base64.b64decode(step["body"])
        etag = step["headers"].get("ETag")
        if etag and (asked or {}).get("if-none-match") == etag:
            step, body = {**step, "status": 304}, b""
        head = [f"HTTP/{step.get('version', '1.1')} {step['status']} Said"]
        head += [f"{key}: {value}" for key, value in step["headers"].items()]
        length = step.get("length", len(body))
        if step.get("chunked"):
            head.append("Transfer-Encoding: chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        elif length is not None:
            head.append(f"Content-Length: {length}")
        time.sleep(step.get("pause", 0))
        start = "\r\n".join([*head, "Connection: close", "", ""]).encode()
        self._send(start + body[: step.get("cut", len(body))], step.get("drip", 0))
        self.close_connection = True

    def _send(self, data: bytes, drip: float) -> None:
        if not drip:
            self.wfile.write(data)
            return
        for byte in data:
            self.wfile.write(bytes([byte]))
            time.sleep(drip)

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    """Serve until whoever started this is gone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
