"""The HTTP API: what the agent's memory holds, as JSON. No request reads a device, writes, or runs a command."""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from importlib import resources
from io import BytesIO
from typing import Any, Final
from urllib.parse import parse_qsl

from gpumon.agent.node import Node
from gpumon.agent.server import PEER

logger = logging.getLogger(__name__)

LIMITS: Final = {"collector": (16, 64), "device": (48, 256), "path": (16, 4096)}
"""Of each parameter: how often it may be given, how many characters it may have."""
_MAX_FIELDS: Final = 64
FRESH_S: Final = 0.5
"""An answer serves everybody who asks the same within so long: many clients cost little more than one."""
_KEPT: Final = 2
_PENDING_BYTES: Final = 16 << 20
"""Of answers that clients have not read yet; whoever asks then is told to come again."""

Parameters = dict[str, list[str]]


class _RefusedError(Exception):
    def __init__(self, status: str, detail: str, *headers: tuple[str, str]) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class _Body:
    """An encoded answer, kept for as long as somebody reads it."""

    def __init__(self, content: bytes) -> None:
        self.content = content


class _Unread(BytesIO):
    """What one client has still to read; shares the bytes with all others."""

    def __init__(self, body: _Body) -> None:
        super().__init__(body.content)
        self._body = body


class Api:
    """The WSGI application."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._routes: dict[str, tuple[Callable[[Parameters, Any], dict[str, Any]], tuple[str, ...]]] = {
            "/v1/health": (lambda _parameters, _peer: node.health(), ()),
            "/v1/readings": (self._readings, ("collector", "device")),
            "/v1/devices": (self._devices, ("path",)),
        }
        self._document = _Body(resources.files("gpumon.agent").joinpath("openapi.json").read_bytes())
        self._lock = threading.Lock()
        self._answers: OrderedDict[str, tuple[float, _Body]] = OrderedDict()
        self._unread: weakref.WeakSet[_Body] = weakref.WeakSet()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers: list[tuple[str, str]] = []
        try:
            status, kind, body = "200 OK", "application/json", self._answer(environ)
        except _RefusedError as refused:
            status, kind, body = refused.status, "application/problem+json", _problem(refused.status, refused.detail)
            headers += refused.headers
        except Exception:
            logger.exception("a request failed")
            status, kind = "500 Internal Server Error", "application/problem+json"
            body = _problem(status, "this is a bug of gpumon; the agent's log says more")
        headers += [
            ("Content-Type", kind),
            ("Content-Length", str(len(body.content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        start_response(status, headers)
        if environ["REQUEST_METHOD"] == "HEAD":
            return []
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](_Unread(body))
        return wrapped

    def _answer(self, environ: dict[str, Any]) -> _Body:
        path = environ["PATH_INFO"]
        if path != "/openapi.json" and path not in self._routes:
            known = ", ".join([*self._routes, "/openapi.json"])
            raise _RefusedError("404 Not Found", f"there are {known}")
        if environ["REQUEST_METHOD"] != "GET":
            raise _RefusedError("405 Method Not Allowed", "only GET: nothing can be changed here", ("Allow", "GET"))
        if path == "/openapi.json":
            return self._document
        answer, known_parameters = self._routes[path]
        parameters = _parameters(environ.get("QUERY_STRING", ""), known_parameters)
        if "path" in parameters:  # everybody has an answer of their own
            return _encoded(answer(parameters, environ.get(PEER)))
        key = f"{path}?{environ.get('QUERY_STRING', '')}"
        now = time.monotonic()
        with self._lock:  # one after the other: the second of two that ask the same gets the first one's answer
            if (kept := self._answers.get(key)) is not None and now - kept[0] < FRESH_S:
                return kept[1]
            if sum(len(body.content) for body in self._unread) > _PENDING_BYTES:
                raise _RefusedError("503 Service Unavailable", "too many unread answers", ("Retry-After", "1"))
            body = _encoded(answer(parameters, None))
            self._unread.add(body)
            self._answers[key] = (now, body)
            self._answers.move_to_end(key)
            while len(self._answers) > _KEPT:
                self._answers.popitem(last=False)
            return body

    def _readings(self, parameters: Parameters, _peer: Any) -> dict[str, Any]:
        return self._node.readings(parameters.get("collector", []), parameters.get("device", []))

    def _devices(self, parameters: Parameters, peer: tuple[int, int] | None) -> dict[str, Any]:
        paths = parameters.get("path", [])
        if not all(path.startswith("/") for path in paths):
            raise _RefusedError("400 Bad Request", "a path begins with /")
        return self._node.devices(paths, peer[0] if peer else 0)


def _parameters(query: str, known: tuple[str, ...]) -> Parameters:
    found: Parameters = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape", max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise _RefusedError("400 Bad Request", f"at most {_MAX_FIELDS} parameters") from None
    for name, value in pairs:
        if name not in known:
            told = f"there are {', '.join(known)}" if known else "there are none here"
            raise _RefusedError("400 Bad Request", f"no such parameter; {told}")
        times, length = LIMITS[name]
        values = found.setdefault(name, [])
        values.append(value)
        if len(values) > times:
            raise _RefusedError("400 Bad Request", f"{name} at most {times} times")
        if not value or len(value) > length or "\0" in value:
            raise _RefusedError("400 Bad Request", f"{name} takes 1 to {length} characters, none of them NUL")
    return found


def _encoded(answer: dict[str, Any]) -> _Body:
    return _Body(json.dumps(answer, separators=(",", ":"), allow_nan=False).encode())


def _problem(status: str, detail: str) -> _Body:
    code, _, title = status.partition(" ")
    return _Body(json.dumps({"title": title, "status": int(code), "detail": detail}).encode())
