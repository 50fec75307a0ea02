"""Nobody gets past the border without a token and the right to kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from border import API, METHODS, check_error, methods_of, paths, send, token
from live_server import SERVER_OPTIONS, Run, TestServer, running

AUTHORIZER = '''
from jupyter_server.auth.authorizer import Authorizer

class ByHeader(Authorizer):
    """Lets through what the request's own header names, and everything without the header."""

    def is_authorized(self, handler, user, action, resource):
        rights = handler.request.headers.get("X-Rights")
        return rights is None or f"{action}:{resource}" in rights.split()
'''
UNKNOWN = (
    "",
    "/",
    "/gpus/",
    "/kernels/x/why",
    "/policies",
    "/gpus/x/cordon/y",
    "/kernels/a%ff/pin",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, run: Run[Any]) -> Iterator[TestServer]:
    folder = tmp_path_factory.mktemp("auth")
    (folder / "rights.py").write_text(AUTHORIZER)
    process = TestServer(
        folder,
        options={**SERVER_OPTIONS, "ServerApp.authorizer_class": "rights.ByHeader"},
        env={"PYTHONPATH": str(folder)},
    )
    with running(process, run):
        yield process


async def walk(
    server: TestServer, headers: dict[str, str], query: str = ""
) -> dict[tuple[str, str], int]:
    """Send every method to every path; return the statuses, and check the errors' form."""
    statuses = {}
    for path, _ in paths():
        for method in METHODS:
            target = f"{API}/{path.replace('{}', 'x')}{query}"
            status, model = await send(server, method, target, b"", headers)
            statuses[method, path] = status
            if status >= 400 and method != "HEAD":
                check_error(model)
    return statuses


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, ""),
        ({"Authorization": "token wrong"}, ""),
        ({"Authorization": "Bearer wrong"}, ""),
        ({}, "?token=wrong"),
        ({"Cookie": "_xsrf=a; username=b"}, ""),
    ],
)
def test_without_a_valid_token_every_method_of_every_path_is_forbidden(
    server: TestServer, run: Run[Any], headers: dict[str, str], query: str
) -> None:
    statuses = run(walk(server, headers, query))
    assert len(statuses) == 24 * len(METHODS)
    assert {k: s for k, s in statuses.items() if s != 403} == {}


def test_no_right_to_kernels_is_no_right_to_their_gpus(server: TestServer, run: Run[Any]) -> None:
    statuses = run(walk(server, {**token(server), "X-Rights": "read:contents"}))
    answered = {(m, p) for p, handler in paths() for m in methods_of(handler)}
    assert {statuses[key] for key in answered} == {403}
    assert {statuses[key] for key in set(statuses) - answered} == {405}


@pytest.mark.parametrize(
    ("right", "methods"),
    [
        ("read:kernels", {"GET"}),
        ("write:kernels", {"POST", "PUT", "DELETE"}),
        ("write:contents", set()),
    ],
)
def test_each_right_opens_its_own_methods_only(
    server: TestServer, run: Run[Any], right: str, methods: set[str]
) -> None:
    statuses = run(walk(server, {**token(server), "X-Rights": right}))
    opened = {
        (m, p) for p, handler in paths() for m in methods_of(handler) if statuses[m, p] != 403
    }
    assert opened == {(m, p) for p, h in paths() for m in methods_of(h) if m in methods}


@pytest.mark.parametrize("path", UNKNOWN)
def test_what_does_not_exist_is_told_only_to_those_who_may_know(
    server: TestServer, run: Run[Any], path: str
) -> None:
    status, model = run(send(server, "GET", API + path))
    assert status == 403
    check_error(model)
    status, model = run(send(server, "GET", API + path, None, token(server)))
    assert status in {404, 405}
    check_error(model)


def test_a_preflight_needs_no_token_and_says_nothing(server: TestServer, run: Run[Any]) -> None:
    for path, _ in paths():
        status, model = run(send(server, "OPTIONS", f"{API}/{path.replace('{}', 'x')}"))
        assert (status, model) == (200, None)
