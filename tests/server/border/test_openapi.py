"""openapi.yaml describes what the handlers really answer, no more and no less."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib.resources import files
from typing import Any

import pytest
import yaml
from border import API, METHODS, methods_of, paths
from jsonschema import Draft202012Validator
from live_server import Run, TestServer, started, until
from openapi_spec_validator import validate
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from jupyter_gpu_predict import errors
from jupyter_gpu_predict.control.operations import Operation
from jupyter_gpu_predict.control.records import Decision
from jupyter_gpu_predict.core import model, plans
from jupyter_gpu_predict.core.power import GpuPower
from jupyter_gpu_predict.demo.client import Notebook
from jupyter_gpu_predict.server.inputs import HEALTH_FIELDS

SPEC: dict[str, Any] = yaml.safe_load(
    (files("jupyter_gpu_predict.server") / "openapi.yaml").read_text()
)
SCHEMAS: dict[str, Any] = SPEC["components"]["schemas"]
DESCRIBED = {
    (method.upper(), path)
    for path, item in SPEC["paths"].items()
    for method in item
    if method.upper() in METHODS
}
MIRRORS = {
    "Lease": model.Lease,
    "Claim": model.Claim,
    "CellRun": model.CellRun,
    "Quantiles": model.Quantiles,
    "HorizonForecast": model.HorizonForecast,
    "Backtest": model.Backtest,
    "Forecast": model.Forecast,
    "NeedForecast": model.NeedForecast,
    "NextCell": model.NextCell,
    "Health": model.GpuHealth,
    "XidEvent": model.XidEvent,
    "GpuView": model.GpuView,
    "KernelView": model.KernelView,
    "ClusterView": model.ClusterView,
    "Policy": model.PolicySettings,
    "PolicyChange": model.PolicySettings,
    "Plan": plans.Plan,
    "Decision": Decision,
    "Operation": Operation,
}


def names(cls: Any) -> set[str]:
    return {f.name for f in fields(cls)}


def template(path: str) -> str:
    """Return a path with its parameters' names left out."""
    return re.sub(r"\{\w+\}", "{}", path)


def test_it_is_valid_openapi() -> None:
    validate(SPEC)


def test_it_names_every_path_and_method_of_the_handlers_and_no_other() -> None:
    described = {(method, template(path)) for method, path in DESCRIBED}
    handled = {(m, f"/{path}") for path, handler in paths() for m in methods_of(handler)}
    assert described == handled


def test_every_operation_has_a_name_a_summary_and_says_when_it_is_forbidden() -> None:
    operations = [SPEC["paths"][p][m.lower()] for m, p in DESCRIBED]
    assert len({o["operationId"] for o in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"].endswith(".")
        assert "403" in operation["responses"]


@pytest.mark.parametrize("name", MIRRORS)
def test_a_schema_has_the_fields_of_its_dataclass(name: str) -> None:
    assert set(SCHEMAS[name]["properties"]) == names(MIRRORS[name])
    assert SCHEMAS[name]["additionalProperties"] is False
    if name != "PolicyChange":
        assert set(SCHEMAS[name]["required"]) == names(MIRRORS[name])


def test_what_is_named_elsewhere_is_named_alike() -> None:
    assert names(model.GpuStatus) < set(SCHEMAS["Gpu"]["required"])
    assert names(GpuPower) | {"saved_j"} == set(SCHEMAS["GpuPower"]["required"])
    assert names(model.Lease) | {"held_bytes"} == set(SCHEMAS["HeldLease"]["required"])
    assert set(SCHEMAS["HealthChange"]["propertyNames"]["enum"]) == HEALTH_FIELDS
    assert SCHEMAS["LeaseState"]["enum"] == [s.value for s in model.LeaseState]
    assert SCHEMAS["RiskLevel"]["enum"] == [s.value for s in model.RiskLevel]
    assert SCHEMAS["Rung"]["enum"] == [s.value for s in model.Rung]
    assert SCHEMAS["CellRun"]["properties"]["outcome"]["enum"] == [o.value for o in model.Outcome]
    horizons = SCHEMAS["HorizonForecast"]["properties"]["horizon_s"]["enum"]
    assert tuple(horizons) == model.HORIZONS_S
    known = {"".join(f"_{c.lower()}" if c.isupper() else c for c in n) for n in dir(errors)}
    for reason in set(SCHEMAS["Error"]["properties"]["reason"]["examples"]) - {"forbidden"}:
        assert f"_{reason}_error" in known


@pytest.mark.parametrize("action", plans.Action.__args__, ids=lambda a: a.__name__)
def test_every_action_of_a_plan_is_described(action: Any) -> None:
    described = SCHEMAS["Action"]
    assert action.__name__ in described["properties"]["action"]["enum"]
    assert names(action) <= set(described["properties"])


class Checked:
    """Sends requests and holds every answer against its schema."""

    def __init__(self, server: TestServer) -> None:
        self.server = server
        self.answered: dict[tuple[str, str], set[int]] = {}

    async def __call__(self, method: str, path: str, body: Any = None, **named: str) -> Any:
        response = await AsyncHTTPClient(force_instance=True).fetch(
            HTTPRequest(
                self.server.url + API + path.format(**named).replace(" ", "%20"),
                method=method,
                headers={"Authorization": f"token {self.server.token}"},
                body=None if body is None else json.dumps(body),
                allow_nonstandard_methods=True,
                request_timeout=60.0,
            ),
            raise_error=False,
        )
        self.answered.setdefault((method, path), set()).add(response.code)
        operation = SPEC["paths"][path][method.lower()]
        assert str(response.code) in operation["responses"], (method, path, response.code)
        described = operation["responses"][str(response.code)]
        if "$ref" in described:
            described = SPEC["components"]["responses"][described["$ref"].rpartition("/")[2]]
        if "Location" in described.get("headers", {}):
            assert response.headers["Location"].startswith(f"/{API}/operations/")
        if "content" not in described:
            assert not response.body
            return None
        assert response.headers["Content-Type"].startswith("application/json")
        model = json.loads(response.body, parse_constant=pytest.fail)
        described_model = described["content"]["application/json"]["schema"]
        Draft202012Validator({**described_model, "components": SPEC["components"]}).validate(model)
        return model

    async def do(self, kernel: str, kind: str, body: Any = None) -> Any:
        return await self.ended(
            await self("POST", f"/kernels/{{kernel}}/{kind}", body, kernel=kernel)
        )

    async def ended(self, started: Any) -> Any:
        async def over() -> Any:
            model = await self("GET", "/operations/{operation}", operation=started["id"])
            return model["state"] != "running" and model

        return await until(over, 120.0)


@pytest.fixture(scope="module")
def notebook(server: TestServer, run: Run[Any]) -> Iterator[Notebook]:
    code = "import torch; x = torch.ones(1 << 22); y = (i for i in [1])"
    notebook: Notebook = run(server.opened("described.ipynb", code))
    yield notebook
    run(server.end(notebook))


def test_a_live_server_answers_as_described(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    call = Checked(server)
    kernel, gpu = notebook.kernel_id, "SIM-GPU-1"

    async def everything() -> None:
        await call("GET", "/gpus")
        assert (await call("GET", "/power"))["gpus"] == []
        await call("GET", "/kernels")
        for kind, body in (
            ("claim", {"bytes": 32 << 20, "priority": "high", "deadline_s": 30}),
            ("reclaim", {"wait": True}),
            ("bind", None),
            ("snapshot", {"name": "as described"}),
            ("restore", {"snapshot": "as described"}),
        ):
            ended = await call.do(kernel, kind, body)
            assert ended["state"] == "done", ended
        assert (await call.do(kernel, "claim", {"bytes": 1, "deadline_s": 0}))["state"] == "failed"
        await notebook.run("del y")
        assert (await call.do(kernel, "migrate"))["state"] == "done"
        await notebook.run("x.sum()")

        await notebook.run("import time")
        sleeps = await started(notebook, "time.sleep(600)")
        held = await call("POST", "/kernels/{kernel}/snapshot", kernel=kernel)
        cancelled = await call("POST", "/operations/{operation}/cancel", operation=held["id"])
        assert cancelled["id"] == held["id"]
        assert (await call.ended(held))["state"] == "cancelled"
        await server.post(f"api/kernels/{kernel}/interrupt")
        await notebook.finish(sleeps)

        await call("GET", "/snapshots")
        await call("GET", "/snapshots/{snapshot}", snapshot="as described")
        await call("DELETE", "/snapshots/{snapshot}", snapshot="as described")
        await call("POST", "/kernels/{kernel}/pin", kernel=kernel)
        await call("POST", "/kernels/{kernel}/unpin", {}, kernel=kernel)
        await call("GET", "/kernels/{kernel}", kernel=kernel)
        await call("GET", "/kernels/{kernel}/trace", kernel=kernel)

        async def forecast() -> Any:
            return (await call("GET", "/kernels/{kernel}/forecast", kernel=kernel))["model"]

        await until(forecast)
        await call("GET", "/plan")
        policy = await call("GET", "/policy")
        await call("PUT", "/policy", policy)

        for action in ("cordon", "drain", "uncordon"):
            await call("POST", f"/gpus/{{gpu}}/{action}", gpu=gpu)
        await call("POST", "/gpus/{gpu}/health", {"xid": 13, "temperature_c": 40.5}, gpu=gpu)
        await call("GET", "/gpus")

    async def refusals() -> None:
        for method, path in sorted(DESCRIBED):
            for name in ("nobody-7", "a..b"):
                if "{" in path:
                    body = {"bytes": 1} if path.endswith("/claim") else None
                    body = {"snapshot": "x"} if path.endswith("/restore") else body
                    body = {"xid": 13} if path.endswith("health") else body
                    parameter = re.findall(r"\{(\w+)\}", path)[0]
                    await call(method, path, body, **{parameter: name})
        await call("PUT", "/policy", {"no": 1})
        await call("POST", "/kernels/{kernel}/claim", {"bytes": 1 << 40}, kernel=kernel)

    run(everything())
    run(refusals())
    done = {key for key, statuses in call.answered.items() if min(statuses) < 300}
    assert done == DESCRIBED
    refused = {key for key, statuses in call.answered.items() if {400, 404} <= statuses}
    assert refused == {(m, p) for m, p in DESCRIBED if "{" in p}
