"""A Jupyter Server in a process of its own, and notebooks on it, over its public APIs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from ..errors import GpuPredictError, KernelLinkError, LinkTimeoutError
from ..server import API

LARGEST_MESSAGE = 1 << 30


class ServerProcess:
    """A real `jupyter server` with its own folders, token and port."""

    def __init__(
        self,
        folder: Path,
        *,
        root: Path,
        options: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        extension: bool = True,
    ) -> None:
        self.folder = folder
        self.root = root
        self.token = secrets.token_hex(16)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = folder / "server.log"
        self._options = {
            "ServerApp.port": self.port,
            "ServerApp.port_retries": 0,
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.root_dir": str(root),
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "IdentityProvider.token": self.token,
            **(options or {}),
        }
        if not extension:
            self._options["ServerApp.jpserver_extensions"] = "{'jupyter_gpu_predict': False}"
            self._options["KernelProvisionerFactory.default_provisioner_name"] = "local-provisioner"
        self._env = dict(env or {})
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; `ready` waits for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        env = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            "IPYTHONDIR": str(self.folder / "ipython"),
            **self._env,
        }
        arguments = [f"--{name}={value}" for name, value in self._options.items()]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyter_server", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=self.folder,
                start_new_session=True,
            )

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Wait until it answers.

        Raises
        ------
        GpuPredictError
            If it ended or did not answer in time; with the end of its log.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                await self.get("api/status")
                return
            except (OSError, GpuPredictError, HTTPClientError) as error:
                code = self.process.poll() if self.process is not None else None
                if code is not None or time.monotonic() > end:
                    raise GpuPredictError(
                        f"the Jupyter server did not come up ({error}); its log ends:\n"
                        + self.log.read_text(errors="replace")[-3000:]
                    ) from None
                await asyncio.sleep(0.1)

    async def stop(self, timeout_s: float = 20.0) -> None:
        """Stop it as an operator would."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self.process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it with no chance to tidy up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    # ------------------------------------------------------------------ REST

    async def request(
        self, method: str, path: str, body: Any = None, *, token: str | None = None
    ) -> tuple[int, Any]:
        """Send a request and return its status and JSON."""
        sent = self.token if token is None else token
        response = await AsyncHTTPClient(force_instance=True).fetch(
            HTTPRequest(
                self.url + path,
                method=method,
                headers={"Authorization": f"token {sent}"} if sent else {},
                body=None if body is None else body if isinstance(body, str) else json.dumps(body),
                allow_nonstandard_methods=True,
                request_timeout=60.0,
            ),
            raise_error=False,
        )
        if response.code == 599:
            raise OSError(str(response.error))
        raw = response.body
        try:
            return response.code, json.loads(raw) if raw else None
        except ValueError:
            return response.code, raw.decode(errors="replace")

    async def get(self, path: str) -> Any:
        """Return the JSON at `path`.

        Raises
        ------
        GpuPredictError
            If the server refuses.
        """
        return await self._checked("GET", path, None)

    async def post(self, path: str, body: Any = None) -> Any:
        """Post and return the answer's JSON."""
        return await self._checked("POST", path, {} if body is None else body)

    async def _checked(self, method: str, path: str, body: Any) -> Any:
        status, model = await self.request(method, path, body)
        if status >= 400:
            raise GpuPredictError(f"{method} {path}: {status} {model}")
        return model

    async def operation(self, started: Mapping[str, Any], timeout_s: float = 120.0) -> Any:
        """Wait for an operation's end and return it."""
        end = time.monotonic() + timeout_s
        while True:
            model = await self.get(f"{API}/operations/{started['id']}")
            if model["state"] != "running":
                return model
            if time.monotonic() > end:
                raise LinkTimeoutError(f"operation {started['id']} is still {model['state']}")
            await asyncio.sleep(0.05)

    async def open(self, path: str | None = None, name: str = "python3") -> Notebook:
        """Start a kernel, for the notebook at `path` if there is one, and connect to it."""
        if path is None:
            kernel_id = (await self.post("api/kernels", {"name": name}))["id"]
        else:
            session = await self.post(
                "api/sessions",
                {"path": path, "type": "notebook", "name": path, "kernel": {"name": name}},
            )
            kernel_id = session["kernel"]["id"]
        notebook = Notebook(self, kernel_id)
        await notebook.connect()
        return notebook


@dataclass
class Execution:
    """What came of one execute request."""

    msg_id: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    reply: dict[str, Any] | None = None
    idle: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> str:
        """Status of the reply."""
        return "none" if self.reply is None else str(self.reply["status"])

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The outputs as a notebook would save them."""
        found: list[dict[str, Any]] = []
        for message in self.messages:
            kind, content = message["msg_type"], message["content"]
            if kind == "clear_output":
                found.clear()
            elif kind == "stream":
                if found and found[-1].get("name") == content["name"]:
                    found[-1]["text"] += content["text"]
                else:
                    found.append({"output_type": "stream", **content})
            elif kind in {"display_data", "execute_result"}:
                found.append(
                    {
                        "output_type": kind,
                        "data": content["data"],
                        "metadata": content["metadata"],
                        **{k: content[k] for k in ("execution_count",) if k in content},
                    }
                )
            elif kind == "error":
                found.append({"output_type": kind, **content})
        return found

    @property
    def text(self) -> str:
        """All text of the outputs."""
        return "".join(
            o.get("text")
            or o.get("data", {}).get("text/plain")
            or "\n".join(o.get("traceback", ()))
            for o in self.outputs
        )


class Notebook:
    """A kernel with a websocket open to it, as a tab of JupyterLab has."""

    def __init__(self, server: ServerProcess, kernel_id: str) -> None:
        self.server = server
        self.kernel_id = kernel_id
        self.session = uuid.uuid4().hex
        self.executions: dict[str, Execution] = {}
        self.others: list[dict[str, Any]] = []
        self.closed = False
        self._socket: WebSocketClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Open the websocket."""
        url = self.server.url.replace("http", "ws", 1)
        self._socket = await websocket_connect(
            HTTPRequest(
                f"{url}api/kernels/{self.kernel_id}/channels?session_id={self.session}",
                headers={"Authorization": f"token {self.server.token}"},
                request_timeout=60.0,
                connect_timeout=60.0,
            ),
            max_message_size=LARGEST_MESSAGE,
        )
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self._socket is not None  # noqa: S101 - connect set it
        while (raw := await self._socket.read_message()) is not None:
            if isinstance(raw, bytes):
                continue
            message = json.loads(raw)
            message["heard_s"] = time.time()
            execution = self.executions.get(message["parent_header"].get("msg_id"))
            if execution is None:
                self.others.append(message)
                continue
            if message["channel"] in {"shell", "control"}:
                execution.reply = message["content"]
            elif message["channel"] == "iopub":
                execution.messages.append(message)
                if message["msg_type"] == "status":
                    execution.idle = message["content"]["execution_state"] == "idle"
            if execution.idle and execution.reply is not None:
                execution.done.set()
        self.closed = True
        for execution in self.executions.values():
            execution.done.set()

    async def send(
        self, msg_type: str, content: dict[str, Any], channel: str = "shell", **header: Any
    ) -> Execution:
        """Send a message and return the place where its answers gather."""
        execution = Execution(uuid.uuid4().hex)
        self.executions[execution.msg_id] = execution
        assert self._socket is not None  # noqa: S101 - connect set it
        await self._socket.write_message(
            json.dumps(
                {
                    "channel": channel,
                    "header": {
                        "msg_id": execution.msg_id,
                        "msg_type": msg_type,
                        "session": self.session,
                        "username": "user",
                        "version": "5.3",
                        "date": "2026-01-01T00:00:00Z",
                        **header,
                    },
                    "parent_header": {},
                    "metadata": {},
                    "content": content,
                    "buffers": [],
                }
            )
        )
        return execution

    async def start(self, code: str, **content: Any) -> Execution:
        """Send a cell and return at once."""
        return await self.send(
            "execute_request",
            {
                "code": code,
                "silent": False,
                "store_history": True,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": True,
                **content,
            },
        )

    async def finish(self, execution: Execution, timeout_s: float = 120.0) -> Execution:
        """Wait for a cell's end.

        Raises
        ------
        LinkTimeoutError
            If it does not end in time.
        KernelLinkError
            If the websocket closed meanwhile.
        """
        try:
            await asyncio.wait_for(execution.done.wait(), timeout_s)
        except asyncio.TimeoutError:
            raise LinkTimeoutError(
                f"kernel {self.kernel_id}: no answer within {timeout_s:g} s"
            ) from None
        if execution.reply is None:
            raise KernelLinkError(f"kernel {self.kernel_id}: its websocket was closed")
        return execution

    async def run(self, code: str, timeout_s: float = 120.0, **content: Any) -> Execution:
        """Run a cell to its end."""
        return await self.finish(await self.start(code, **content), timeout_s)

    async def close(self) -> None:
        """Close the websocket and leave the kernel running."""
        if self._socket is not None:
            self._socket.close()
        if self._reader is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._reader], timeout=5)


def _free_port() -> int:
    # Below the ports that systems give out by themselves: one of those may be another's at any
    # time before the server has bound it, be it by a client that polls for that very server.
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
