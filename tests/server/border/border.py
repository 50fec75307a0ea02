"""Every path of the REST API, and requests as no well-behaved client sends them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from live_server import TestServer
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.web import RequestHandler

from jupyter_gpu_predict.demo.client import API
from jupyter_gpu_predict.server.handlers import ROUTES, ApiHandler

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH")
_ONE_OF = re.compile(r"\(([\w|]+)\)")
_PART = "([^/]+)"


def paths() -> list[tuple[str, type[ApiHandler]]]:
    """Return every path, with ``{}`` for a name in it, and its handler."""
    found = []
    for pattern, handler in ROUTES:
        pieces = _ONE_OF.split(pattern.replace(_PART, "{}"))
        choices = [p.split("|") if i % 2 else [p] for i, p in enumerate(pieces)]
        found += [("".join(chosen), handler) for chosen in itertools.product(*choices)]
    return found


def methods_of(handler: type[ApiHandler]) -> set[str]:
    """Return the methods that a handler answers."""
    return {
        m for m in METHODS if getattr(handler, m.lower()) is not getattr(RequestHandler, m.lower())
    }


async def send(
    server: TestServer,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """Send raw bytes with exactly these headers; return the status and the JSON."""
    response = await AsyncHTTPClient(force_instance=True).fetch(
        HTTPRequest(
            server.url + path,
            method=method,
            headers=dict(headers or {}),
            body=body,
            allow_nonstandard_methods=True,
            request_timeout=60.0,
        ),
        raise_error=False,
    )
    return response.code, json.loads(response.body) if response.body else None


def token(server: TestServer) -> dict[str, str]:
    """Return the header that lets a request in."""
    return {"Authorization": f"token {server.token}"}


def check_error(model: Any) -> None:
    """Check that an error is ``{"message", "reason"}`` and gives nothing away."""
    assert set(model) == {"message", "reason"}
    assert re.fullmatch(r"[a-z_]+", model["reason"])
    assert model["message"]
    assert "Traceback" not in model["message"]
    assert not re.search(r"\.py\b|/(root|home|tmp|work|usr)/", model["message"])


__all__ = ["API", "METHODS", "check_error", "methods_of", "paths", "send", "token"]
