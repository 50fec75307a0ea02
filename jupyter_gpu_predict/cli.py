"""The `jupyter gpu` command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .core.sizes import format_bytes
from .errors import DeviceError, GpuPredictError
from .server import API

if TYPE_CHECKING:
    from rich.console import Console

    from .devices.doctor import Check

TIMEOUT_S = 10.0
"""How long a running server may take to answer."""

NARROWEST = 120
"""Columns of a table that goes to a pipe or a file."""


@dataclass(frozen=True)
class Server:
    """A running Jupyter server of this user."""

    url: str
    token: str
    root_dir: str
    pid: int

    def get(self, path: str) -> Any:
        """Return the JSON at `path` of our API, ``None`` if the server has no such extension.

        Raises
        ------
        GpuPredictError
            If the server cannot be reached or refuses; the message is one sentence.
        """
        from tornado.httpclient import HTTPClient, HTTPRequest

        request = HTTPRequest(
            f"{self.url.rstrip('/')}/{API}/{path}",
            headers={"Authorization": f"token {self.token}"} if self.token else {},
            connect_timeout=TIMEOUT_S,
            request_timeout=TIMEOUT_S,
            follow_redirects=False,
        )
        client = HTTPClient()
        try:
            response = client.fetch(request, raise_error=False)
        except (OSError, ValueError) as error:
            raise GpuPredictError(f"{self.url} cannot be asked: {error}.") from None
        finally:
            client.close()
        if response.code == 404:
            return None
        if response.code == 599:
            raise GpuPredictError(f"{self.url} cannot be asked: {response.error}.")
        # A server that wants a password sends people to its login page.
        if response.code in {301, 302, 401, 403}:
            raise GpuPredictError(
                f"{self.url} refuses its own token ({response.code}): it may want a password."
            )
        try:
            model = json.loads(response.body)
        except ValueError:
            if response.code < 400:
                raise GpuPredictError(f"{self.url} answered what is no JSON.") from None
            model = None
        if response.code >= 400:
            said = model.get("message") if isinstance(model, dict) else None
            raise GpuPredictError(f"{self.url} answered {response.code}: {said or response.reason}")
        return model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all is well, 1 if something failed, 2 for a mistake in the command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["demo"]:
        from .demo.app import main as demo

        return demo(arguments[1:])
    options = _parser().parse_args(arguments)
    commands = {"status": _status, "doctor": _doctor}
    try:
        if options.command == "snapshots":
            from .cli_snapshots import run

            return run(options)
        if options.command in {"train", "models"}:
            from .cli_models import run as run_models

            return run_models(options)
        if options.command == "replay":
            from .replay.cli import run as run_replay

            return run_replay(options, console_for_people())
        if options.command == "doctor" and options.prove:
            return _prove(as_json=options.json, python=options.python)
        return commands[options.command](as_json=options.json)
    except GpuPredictError as error:
        print(f"jupyter gpu {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jupyter gpu", description="Show and check the GPUs of this user's Jupyter kernels."
    )
    parser.add_argument("--version", action="version", version=f"jupyter-gpu-predict {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("status", "GPUs and kernels of the running servers"),
        ("doctor", "check the installation; each fault comes with its remedy"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.add_argument(
        "--prove",
        action="store_true",
        help="try on the GPUs what the driver can do with whole processes, and keep what was found",
    )
    command.add_argument(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="interpreter with torch that is tried (with --prove)",
    )
    from . import cli_models, cli_snapshots
    from .replay import cli as cli_replay

    cli_snapshots.add_parser(commands)
    cli_models.add_parsers(commands)
    cli_replay.add_parser(commands)
    commands.add_parser("demo", help="run the main job on simulated GPUs (demo --help says more)")
    return parser


def console_for_people() -> Console:
    """Return a console that prints text as it is, wide enough where it is no terminal."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, NARROWEST)
    return console


def print_table(console: Console, title: str, columns: str, rows: Iterable[Sequence[str]]) -> None:
    """Print a table; `columns` are its heads, parted by ``|``."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in columns.split("|"):
        table.add_column(name, justify="left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_json(model: Any) -> None:
    """Print a model as JSON."""
    print(json.dumps(model, indent=2))


# --------------------------------------------------------------------------- servers


def running_servers() -> list[Server]:
    """Return this user's running Jupyter servers, in the order in which they listen."""
    from jupyter_server.serverapp import list_running_servers

    found = sorted(list_running_servers(), key=lambda info: int(info.get("port") or 0))
    return [
        Server(info["url"], info.get("token", ""), info.get("root_dir", ""), info["pid"])
        for info in found
    ]


# --------------------------------------------------------------------------- status


def _status(*, as_json: bool) -> int:
    servers = [_ask(server) for server in running_servers()]
    local = None if any(s["gpus"] for s in servers) else _local_gpus()
    if as_json:
        print_json({"servers": servers, "local": local})
    else:
        console = console_for_people()
        if not servers:
            console.print("No Jupyter server of this user is running.")
        for server in servers:
            _show_server(console, server)
        if local is not None:
            _show_local(console, local)
    return 1 if any(server["problem"] for server in servers) else 0


def _ask(server: Server) -> dict[str, Any]:
    """Return what a server says of its GPUs and kernels; never its token."""
    model: dict[str, Any] = {
        "url": server.url,
        "root_dir": server.root_dir,
        "pid": server.pid,
        "extension": None,
        "gpus": None,
        "kernels": None,
        "power": None,
        "problem": None,
    }
    try:
        model["gpus"] = server.get("gpus")
        model["extension"] = model["gpus"] is not None
        if model["extension"]:
            model["kernels"] = server.get("kernels")
            model["power"] = server.get("power")
    except GpuPredictError as error:
        model["problem"] = str(error)
    return model


def _show_server(console: Console, server: dict[str, Any]) -> None:
    console.print(f"Server {server['url']} (pid {server['pid']}), {server['root_dir']}")
    if server["problem"]:
        console.print(server["problem"], style="red")
        return
    if not server["extension"]:
        console.print(
            "It runs without jupyter_gpu_predict, so its kernels' GPUs are not managed: "
            "`jupyter gpu doctor` says why; restart it afterwards."
        )
        return
    gpus, kernels = server["gpus"], server["kernels"]
    console.print(gpus["backend"], style="yellow" if gpus["simulated"] else None)
    title = "Simulated GPUs" if gpus["simulated"] else "GPUs"
    print_table(
        console, title, "GPU|name|held|state|risk|kernels", (_gpu_row(g) for g in gpus["gpus"])
    )
    console.print(_power_line(server["power"]))
    if kernels:
        title = "Kernels on simulated GPUs" if gpus["simulated"] else "Kernels"
        columns = "kernel|notebook|state|GPU|used|suspended|last decision"
        print_table(console, title, columns, (_kernel_row(k) for k in kernels))
    else:
        console.print("No kernels.")


def _gpu_row(gpu: dict[str, Any]) -> tuple[str, ...]:
    state = "draining" if gpu["draining"] else "cordoned" if gpu["cordoned"] else "ready"
    risk = gpu["risk"]
    evidence = "" if risk is None else " ".join(risk["evidence"])
    return (
        gpu["uuid"],
        gpu["name"],
        f"{format_bytes(gpu['held_bytes'])} of {format_bytes(gpu['total_bytes'])}",
        "lost" if gpu["lost"] else state,
        "unknown" if risk is None else f"{risk['level']}{': ' if evidence else ''}{evidence}",
        str(len(gpu["leases"])),
    )


def _power_line(power: dict[str, Any] | None) -> str:
    """Return the energy in a sentence; a server of an earlier version tells none."""
    if power is None or power["simulated"]:
        return "Energy: none told (simulated GPUs)." if power else "Energy: unknown."
    now = "" if power["power_w"] is None else f"{power['power_w']:.0f} W now, "
    saved = f"{power['saved_j'] / 3600:.1f} Wh saved by GPUs kept empty"
    if power["unknown"]:
        saved += f" (unknown for {len(power['unknown'])})"
    unmeasured = len(power["unmeasured"])
    note = f"; {unmeasured} GPU(s) tell none" if unmeasured else ""
    return f"Energy: {now}{power['used_j'] / 3600:.1f} Wh since the server started, {saved}{note}."


def _kernel_row(kernel: dict[str, Any]) -> tuple[str, ...]:
    states = [kernel["state"]]
    states += [word for word in ("busy", "pinned") if kernel[word]]
    states += ["waiting"] if kernel["waiting"] else []
    states += [] if kernel["agent"] else ["no agent"]
    lease, decision = kernel["lease"], kernel["last_decision"]
    return (
        kernel["id"][:8],
        kernel["notebook"] or "-",
        ", ".join(states),
        "-" if lease is None else lease["gpu_uuid"],
        format_bytes(kernel["used_bytes"]),
        format_bytes(kernel["suspended_bytes"]),
        "-" if decision is None else decision["reason"],
    )


def _local_gpus() -> dict[str, Any]:
    from .devices.choose import choose_backend

    try:
        backend, sentence = choose_backend("nvml")
    except DeviceError as error:
        sentence = f"{error} A server started here now simulates GPUs."
        return {"simulated": True, "backend": sentence, "gpus": []}
    try:
        gpus = [asdict(gpu) for gpu in backend.read()]
    finally:
        backend.close()
    return {"simulated": False, "backend": sentence, "gpus": gpus}


def _show_local(console: Console, local: dict[str, Any]) -> None:
    console.print(local["backend"])
    if local["gpus"]:
        title = "GPUs of this machine (nothing is managed)"
        print_table(
            console, title, "GPU|name|used|state", (_local_row(gpu) for gpu in local["gpus"])
        )


def _local_row(gpu: dict[str, Any]) -> tuple[str, ...]:
    used = "?" if gpu["used_bytes"] is None else format_bytes(gpu["used_bytes"])
    return (
        gpu["uuid"],
        gpu["name"],
        f"{used} of {format_bytes(gpu['total_bytes'])}",
        "lost" if gpu["lost"] else "; ".join(gpu["problems"]) or "ready",
    )


# --------------------------------------------------------------------------- doctor


def _doctor(*, as_json: bool) -> int:
    from .demo.probe import probe_agent
    from .server.doctor import check_all

    console = console_for_people()
    if not as_json:
        console.print("Checking; a kernel is started for it, which takes some seconds.")
    checks = check_all()
    # Where a part is missing the probe could only repeat that, after a long wait.
    if all(check.ok is not False for check in checks if check.name in {"packages", "store"}):
        checks.append(probe_agent())
    return _show_checks(console, checks, as_json=as_json)


def _prove(*, as_json: bool, python: str) -> int:
    from .server.doctor import prove

    console = console_for_people()
    if not as_json:
        console.print("Trying driver checkpoints on the GPUs; this takes some minutes.")
    return _show_checks(console, prove(python=python), as_json=as_json)


def _show_checks(console: Console, checks: Sequence[Check], *, as_json: bool) -> int:
    failed = [check for check in checks if check.ok is False]
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
        return 1 if failed else 0
    words = {True: "ok", False: "FAILED", None: "does not apply"}
    print_table(
        console,
        "jupyter gpu doctor",
        "check|result|detail",
        ((c.name, words[c.ok], c.detail) for c in checks),
    )
    for check in failed:
        console.print(f"{check.name}: {check.detail}\n  Remedy: {check.remedy}", style="red")
    if not failed:
        console.print("All is well.", style="green")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
