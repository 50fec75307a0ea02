"""REST: parse, call the API, answer. What is decided is decided elsewhere."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado.web import HTTPError, authenticated

from ..control.operations import Operation
from ..errors import BadInputError, GpuPredictError, NotFoundError
from . import API as BASE
from .api import Api
from .inputs import known_fields, text

AUTH_RESOURCE = "kernels"
"""Who may use kernels may use their GPUs."""

GPU_ACTIONS = ("cordon", "uncordon", "drain", "health")
KERNEL_VIEWS = ("forecast", "trace")
KERNEL_OPERATIONS = ("claim", "bind", "reclaim", "snapshot", "restore", "migrate")
KERNEL_ACTIONS = ("pin", "unpin")

_PART = r"([^/]+)"


class ApiHandler(APIHandler):  # type: ignore[misc]
    """Base of all handlers: authenticated, authorised, errors as ``{"message", "reason"}``."""

    auth_resource = AUTH_RESOURCE

    @property
    def api(self) -> Api:
        """The API of this server."""
        api: Api = self.settings["jupyter_gpu_predict_api"]
        return api

    async def prepare(self) -> None:
        """Refuse strangers before anything else, also where the method does not exist."""
        await super().prepare()
        # A browser's preflight carries no token.
        if not self.current_user and self.request.method != "OPTIONS":
            raise HTTPError(403)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Decode a part of the path; one that is no UTF-8 is refused later, as any bad name is."""
        return value.decode("utf-8", "surrogateescape")

    def body(self) -> dict[str, Any]:
        """Return the request's JSON object; an empty body is an empty object.

        Raises
        ------
        BadInputError
            If it is anything else.
        """
        raw = self.request.body
        if not raw.strip():
            return {}
        try:
            value = json.loads(raw, parse_constant=_refuse_constant)
        except ValueError as error:
            raise BadInputError(f"the body is not valid JSON: {error}") from None
        except RecursionError:
            raise BadInputError("the body is nested too deeply") from None
        if not isinstance(value, dict):
            raise BadInputError(f"the body must be a JSON object, not {type(value).__name__}")
        return value

    def no_body(self) -> None:
        """Refuse a request that says more than it can mean."""
        known_fields(self.body(), set())

    def answer(self, model: Any, status: int = 200) -> None:
        """Send `model` as JSON."""
        self.set_status(status)
        self.finish(json.dumps(model))

    def accepted(self, operation: Operation) -> None:
        """Send a started operation."""
        self.set_header("Location", url_path_join(self.base_url, BASE, "operations", operation.id))
        self.answer(asdict(operation), 202)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send an error as ``{"message", "reason"}``."""
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if isinstance(error, GpuPredictError):
            message, reason, status_code = str(error), error.reason, error.status
        elif isinstance(error, HTTPError):
            message = error.log_message or self._reason
            reason = (error.reason or self._reason).lower().replace(" ", "_")
        else:
            message, reason = "the server failed; its log says more", "internal"
        self.set_status(status_code)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"message": message, "reason": reason}))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log what is not the caller's fault."""
        if not isinstance(value, GpuPredictError) or value.status >= 500:
            super().log_exception(typ, value, tb)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


class GpusHandler(ApiHandler):
    """All GPUs."""

    @authenticated
    @authorized
    def get(self) -> None:
        """List them."""
        self.answer(self.api.gpus())


class PowerHandler(ApiHandler):
    """The energy of the GPUs."""

    @authenticated
    @authorized
    def get(self) -> None:
        """Show it."""
        self.answer(self.api.power())


class GpuActionHandler(ApiHandler):
    """What can be done to one GPU."""

    @authenticated
    @authorized
    def post(self, gpu_uuid: str, action: str) -> None:
        """Do it."""
        uuid = text(gpu_uuid, "GPU")
        if action == "health":
            self.answer(self.api.script_health(uuid, self.body()))
        else:
            self.no_body()
            self.answer(getattr(self.api, action)(uuid))


class KernelsHandler(ApiHandler):
    """All kernels."""

    @authenticated
    @authorized
    def get(self) -> None:
        """List them."""
        self.answer(self.api.kernels())


class KernelHandler(ApiHandler):
    """One kernel."""

    @authenticated
    @authorized
    def get(self, kernel_id: str) -> None:
        """Show it."""
        self.answer(self.api.kernel(text(kernel_id, "kernel")))


class KernelViewHandler(ApiHandler):
    """A kernel's forecast or trace."""

    @authenticated
    @authorized
    def get(self, kernel_id: str, view: str) -> None:
        """Show it."""
        self.answer(getattr(self.api, view)(text(kernel_id, "kernel")))


class KernelActionHandler(ApiHandler):
    """Pin and unpin."""

    @authenticated
    @authorized
    def post(self, kernel_id: str, action: str) -> None:
        """Do it."""
        self.no_body()
        self.answer(self.api.pin(text(kernel_id, "kernel"), pinned=action == "pin"))


class KernelOperationHandler(ApiHandler):
    """Long work on a kernel."""

    @authenticated
    @authorized
    async def post(self, kernel_id: str, kind: str) -> None:
        """Start it and answer 202 with the operation."""
        started = getattr(self.api, kind)(text(kernel_id, "kernel"), self.body())
        self.accepted(await started if inspect.isawaitable(started) else started)


class OperationHandler(ApiHandler):
    """One operation."""

    @authenticated
    @authorized
    def get(self, operation_id: str) -> None:
        """Show its state."""
        self.answer(self.api.operation(text(operation_id, "operation")))


class OperationCancelHandler(ApiHandler):
    """The end of an operation before it is done."""

    @authenticated
    @authorized
    async def post(self, operation_id: str) -> None:
        """Ask it to stop, and answer 202 with the operation."""
        self.no_body()
        self.answer(await self.api.cancel(text(operation_id, "operation")), 202)


class SnapshotsHandler(ApiHandler):
    """All snapshots."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """List them."""
        self.answer(await self.api.snapshots())


class SnapshotHandler(ApiHandler):
    """One snapshot, by id or name."""

    @authenticated
    @authorized
    async def get(self, snapshot: str) -> None:
        """Show it."""
        self.answer(await self.api.snapshot_model(snapshot))

    @authenticated
    @authorized
    async def delete(self, snapshot: str) -> None:
        """Delete it."""
        await self.api.delete_snapshot(snapshot)
        self.set_status(204)
        self.finish()


class PlanHandler(ApiHandler):
    """The last view and plan."""

    @authenticated
    @authorized
    def get(self) -> None:
        """Show them."""
        self.answer(self.api.plan())


class PolicyHandler(ApiHandler):
    """The live policy's settings."""

    @authenticated
    @authorized
    def get(self) -> None:
        """Show them."""
        self.answer(self.api.policy())

    @authenticated
    @authorized
    def put(self) -> None:
        """Change some of them."""
        self.answer(self.api.set_policy(self.body()))


class NothingHandler(ApiHandler):
    """Every path of the API at which there is nothing."""

    async def prepare(self) -> None:
        """Say so, to those who may know."""
        await super().prepare()
        path = self.request.path[:200]
        raise NotFoundError(f"{path} does not exist; openapi.yaml lists what does")


def _any(names: tuple[str, ...]) -> str:
    return f"({'|'.join(names)})"


ROUTES: tuple[tuple[str, type[ApiHandler]], ...] = (
    ("gpus", GpusHandler),
    (f"gpus/{_PART}/{_any(GPU_ACTIONS)}", GpuActionHandler),
    ("power", PowerHandler),
    ("kernels", KernelsHandler),
    (f"kernels/{_PART}", KernelHandler),
    (f"kernels/{_PART}/{_any(KERNEL_VIEWS)}", KernelViewHandler),
    (f"kernels/{_PART}/{_any(KERNEL_ACTIONS)}", KernelActionHandler),
    (f"kernels/{_PART}/{_any(KERNEL_OPERATIONS)}", KernelOperationHandler),
    (f"operations/{_PART}", OperationHandler),
    (f"operations/{_PART}/cancel", OperationCancelHandler),
    ("snapshots", SnapshotsHandler),
    (f"snapshots/{_PART}", SnapshotHandler),
    ("plan", PlanHandler),
    ("policy", PolicyHandler),
)


def routes() -> list[tuple[str, type[ApiHandler]]]:
    """Return the handlers with their full paths."""
    return [
        *((f"/{BASE}/{path}", handler) for path, handler in ROUTES),
        (f"/{BASE}(?:/.*)?", NothingHandler),
    ]
