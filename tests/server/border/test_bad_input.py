"""What is malformed or does not exist is refused with its reason, and nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from border import API, check_error, send, token
from live_server import Run, TestServer

from jupyter_gpu_predict.demo.client import Notebook

GPU = "SIM-GPU-0"
K = "kernels/{kernel}"
NAMES = {
    "slash": "a%2Fb",
    "dots": "a..b",
    "parent": "%2e%2e",
    "backslash": "a%5Cb",
    "nul": "a%00b",
    "newline": "a%0Ab",
    "no_utf8": "a%FFb",
    "300_characters": "x" * 300,
    "129_characters": "x" * 129,
}
NAMED = (
    ("GET", "kernels/{}"),
    ("GET", "kernels/{}/forecast"),
    ("GET", "kernels/{}/trace"),
    ("POST", "kernels/{}/pin"),
    ("POST", "kernels/{}/unpin"),
    ("POST", "kernels/{}/claim"),
    ("POST", "kernels/{}/bind"),
    ("POST", "kernels/{}/reclaim"),
    ("POST", "kernels/{}/snapshot"),
    ("POST", "kernels/{}/restore"),
    ("POST", "kernels/{}/migrate"),
    ("POST", "gpus/{}/cordon"),
    ("POST", "gpus/{}/uncordon"),
    ("POST", "gpus/{}/drain"),
    ("POST", "gpus/{}/health"),
    ("GET", "operations/{}"),
    ("GET", "snapshots/{}"),
    ("DELETE", "snapshots/{}"),
)
BODIES = {"claim": '{"bytes": 1}', "restore": '{"snapshot": "none"}', "health": '{"xid": 13}'}
"""What is right, where an empty body is not."""

NOT_OBJECTS = ("[]", "[1]", "null", "true", "3", '"text"', "NaN")
NOT_JSON = (
    "{",
    "{'bytes': 1}",
    '{"bytes": }',
    '{"bytes": 1} {}',
    "bytes=1",
    b"\xff\xfe",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"bytes": ' + "9" * 5000 + "}",
)
TAKE_BODIES = (
    *(("POST", f"{K}/{kind}") for kind in ("claim", "bind", "reclaim", "snapshot", "restore")),
    *(("POST", f"{K}/{kind}") for kind in ("migrate", "pin", "unpin")),
    *(("POST", f"gpus/{GPU}/{action}") for action in ("cordon", "uncordon", "drain", "health")),
    ("PUT", "policy"),
)
BAD_SIZES = (
    "0", "-1", "-0.5", "1.5", "1e-3", "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e300",
    "9223372036854775808", "1" + "0" * 400, "true", "false", "null", '"12GiB"', '"100"', '"-1"',
    "[1]", "{}",
)  # fmt: skip
BAD_SECONDS = ("-1", "-1e-9", "NaN", "Infinity", "1e999", "1e300", "true", "null", '"5"', "[]")
BAD_NAMES = (
    '"a/b"', '"../b"', '".."', '"a\\\\b"', '"a\\u0000b"', '"a\\nb"', '"\\ud800"', '""', "3", "true",
    "[]", "{}", '"' + "x" * 300 + '"',
)  # fmt: skip
BAD_FIELDS = (
    *(("POST", f"{K}/claim", f'{{"bytes": {size}}}', "bytes") for size in BAD_SIZES),
    *(
        ("POST", f"{K}/claim", f'{{"bytes": 1, "deadline_s": {value}}}', "deadline_s")
        for value in BAD_SECONDS
    ),
    *(
        ("POST", f"{K}/claim", f'{{"bytes": 1, "priority": {value}}}', "priority")
        for value in ('"urgent"', "2", "-2", "0.5", "NaN", "true", "null", "[]", '"1"')
    ),
    *(
        ("POST", f"{K}/claim", f'{{"bytes": 1, "critical": {value}}}', "critical")
        for value in ('"yes"', "1", "null", "[]")
    ),
    *(("POST", f"{K}/claim", f'{{"bytes": 1, "affinity": {n}}}', "affinity") for n in BAD_NAMES),
    *(("POST", f"{K}/snapshot", f'{{"name": {name}}}', "name") for name in (*BAD_NAMES, '".a"')),
    *(("POST", f"{K}/restore", f'{{"snapshot": {name}}}', "snapshot") for name in BAD_NAMES),
    *(("POST", f"{K}/migrate", f'{{"gpu": {name}}}', "gpu") for name in BAD_NAMES),
    *(("POST", f"{K}/reclaim", f'{{"wait": {v}}}', "wait") for v in ('"yes"', "1", "null", "[]")),
    ("POST", f"{K}/claim", "{}", "bytes is missing"),
    ("POST", f"{K}/claim", "", "bytes is missing"),
    ("POST", f"{K}/restore", "{}", "snapshot is missing"),
    *(
        ("PUT", "policy", f'{{"{name}": {value}}}', name)
        for name in ("grace_period_s", "reservation_s", "prebind_horizon_s", "snapshot_interval_s")
        for value in BAD_SECONDS
    ),
    *(
        ("PUT", "policy", f'{{"{name}": {value}}}', name)
        for name in ("prebind_threshold", "max_duty")
        for value in ("-0.1", "1.1", "NaN", "1e999", "1" + "0" * 400, "true", '"0.5"', "null")
    ),
    *(("PUT", "policy", f'{{"prebind": {v}}}', "prebind") for v in ("1", "null", '"true"')),
    *(("PUT", "policy", f'{{"headroom_bytes": {v}}}', "headroom_bytes") for v in BAD_SIZES[1:]),
    ("PUT", "policy", '{"prebind": false, "grace_period_s": -1}', "grace_period_s"),
    *(
        ("POST", f"gpus/{GPU}/health", f'{{"{name}": {value}}}', name)
        for name, value in (
            ("ecc_uncorrected", "-1"), ("ecc_uncorrected", "1.5"), ("ecc_uncorrected", "true"),
            ("ecc_uncorrected", "1e999"), ("ecc_uncorrected", '"3"'), ("xid", "-79"),
            ("xid", "null"), ("xid", '"79"'), ("xids", "3"), ("xids", '[{"code": 1}]'),
            ("temperature_c", "NaN"), ("temperature_c", "1e999"), ("temperature_c", "-300"),
            ("temperature_c", "1" + "0" * 400), ("lost", "1"), ("lost", "null"),
            ("remap_failed", "3"), ("recovery_action", '"hope"'),
        )
    ),
    ("POST", f"gpus/{GPU}/health", '{"ecc_uncorrected": 5, "lost": "yes"}', "lost"),
    ("POST", f"gpus/{GPU}/health", "{}", "empty"),
)  # fmt: skip


@pytest.fixture(scope="module")
def notebook(server: TestServer, run: Run[Any]) -> Iterator[Notebook]:
    notebook: Notebook = run(server.opened())
    yield notebook
    run(server.end(notebook))


@pytest.fixture(scope="module", autouse=True)
def logged_before(server: TestServer) -> int:
    """Return how long the log was when this module began."""
    return len(server.log.read_text(errors="replace"))


async def facts(server: TestServer) -> dict[str, Any]:
    """Return all that a request could have changed."""
    steady = ("id", "state", "lease", "pinned", "priority", "waiting", "operation")
    gpus = (await server.get(f"{API}/gpus"))["gpus"]
    return {
        "gpus": [{k: v for k, v in g.items() if k != "processes"} for g in gpus],
        "kernels": [{k: m[k] for k in steady} for m in await server.get(f"{API}/kernels")],
        "policy": await server.get(f"{API}/policy"),
        "snapshots": await server.get(f"{API}/snapshots"),
    }


def refuse_all(
    server: TestServer,
    run: Run[Any],
    requests: list[tuple[str, str, str | bytes, str]],
    expected: int = 400,
) -> None:
    """Send requests, and check that each is refused for its reason and none changes anything."""

    async def look() -> None:
        before = await facts(server)
        wrong: list[str] = []
        for method, path, body, said in requests:
            status, model = await send(server, method, f"{API}/{path}", body, token(server))
            if status != expected or said not in model["message"]:
                wrong.append(f"{method} {path} {body[:80]!r}: {status} {model}")
            else:
                check_error(model)
                assert len(model["message"]) < 600
        assert not wrong, "\n".join(wrong)
        assert await facts(server) == before

    run(look())


@pytest.mark.parametrize("name", NAMES)
def test_names_that_could_be_paths_are_refused(
    server: TestServer, run: Run[Any], name: str
) -> None:
    requests: list[tuple[str, str, str | bytes, str]] = [
        (method, path.format(NAMES[name]), BODIES.get(path.rpartition("/")[2], ""), "must")
        for method, path in NAMED
    ]
    refuse_all(server, run, requests)


def test_what_does_not_exist_is_named(server: TestServer, run: Run[Any]) -> None:
    requests: list[tuple[str, str, str | bytes, str]] = [
        (method, path.format("nobody-7"), BODIES.get(path.rpartition("/")[2], ""), "'nobody-7'")
        for method, path in NAMED
    ]
    refuse_all(server, run, requests, expected=404)


def test_a_snapshot_or_gpu_that_does_not_exist_is_named_before_anything_is_started(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    kernel = K.format(kernel=notebook.kernel_id)
    requests: list[tuple[str, str, str | bytes, str]] = [
        ("POST", f"{kernel}/restore", '{"snapshot": "nobody-7"}', "'nobody-7'"),
        ("POST", f"{kernel}/migrate", '{"gpu": "nobody-7"}', "'nobody-7'"),
    ]
    refuse_all(server, run, requests, expected=404)


@pytest.mark.parametrize(("body", "said"), [
    *((body, "must be a JSON object") for body in NOT_OBJECTS[:-1]),
    *((body, "the body is") for body in (NOT_OBJECTS[-1], *NOT_JSON)),
    ('{"no_such_field": 1}', "unknown field 'no_such_field'"),
    ('{"' + "x" * 5000 + '": 1}', "unknown field 'xxx"),
], ids=lambda value: repr(value[:16]))  # fmt: skip
def test_bodies_that_are_no_known_objects_are_refused(
    server: TestServer, run: Run[Any], notebook: Notebook, body: str | bytes, said: str
) -> None:
    requests = [
        (method, path.format(kernel=notebook.kernel_id), body, said) for method, path in TAKE_BODIES
    ]
    refuse_all(server, run, requests)


def test_wrong_values_are_refused_by_the_name_of_their_field(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    requests: list[tuple[str, str, str | bytes, str]] = [
        (
            method,
            path.format(kernel=notebook.kernel_id),
            body,
            "no JSON number" if "NaN" in body or "Infinity" in body else said,
        )
        for method, path, body, said in BAD_FIELDS
    ]
    refuse_all(server, run, requests)


def test_a_claim_larger_than_any_gpu_is_told_the_largest(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    claim = f"{K.format(kernel=notebook.kernel_id)}/claim"
    requests: list[tuple[str, str, str | bytes, str]] = [
        ("POST", claim, f'{{"bytes": {size}}}', "512 MiB") for size in ((512 << 20) + 1, 1 << 62)
    ]
    requests.append(("POST", claim, '{"bytes": 1, "affinity": "H100"}', "no GPU is called 'H100'"))
    refuse_all(server, run, requests, expected=422)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "nonsense",
    ],
)
def test_a_content_type_does_not_change_what_a_body_is(
    server: TestServer, run: Run[Any], notebook: Notebook, content_type: str
) -> None:
    async def look() -> None:
        headers = {**token(server), "Content-Type": content_type}
        path = f"{API}/{K.format(kernel=notebook.kernel_id)}/claim"
        before = await facts(server)
        for body in ("bytes=1", '{"bytes": -1}', "--x\r\n\r\n1\r\n--x--\r\n"):
            status, model = await send(server, "POST", path, body, headers)
            assert status == 400
            check_error(model)
        assert await facts(server) == before

    run(look())


def test_the_server_goes_on_after_all_of_it(
    server: TestServer, run: Run[Any], notebook: Notebook, logged_before: int
) -> None:
    assert run(notebook.run("print(6 * 7)")).text == "42\n"
    log = server.log.read_text(errors="replace")[logged_before:]
    assert "Traceback" not in log
    assert not re.search(r" 5\d\d (GET|POST|PUT|DELETE) ", log)
