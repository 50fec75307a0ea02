"""`jupyter gpu` against real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from live_server import Run, TestServer, running

from jupyter_gpu_predict import __version__
from jupyter_gpu_predict.cli import main
from jupyter_gpu_predict.snapshots import capture, load_or_create_key, open_store


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with Jupyter folders of their own and no server."""
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "runtime").mkdir()
    return tmp_path / "runtime"


@pytest.fixture
def at_server(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> TestServer:
    """The user whose server is the module's."""
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(server.folder / name.lower()))
    monkeypatch.delenv("COLUMNS", raising=False)
    return server


class Answer(BaseHTTPRequestHandler):
    status = 500
    body = b'{"message": "the store is on fire", "reason": "internal"}'

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Location", "/login")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def ill_server(runtime: Path) -> Iterator[type[Answer]]:
    """A "running Jupyter server" that answers as the returned class says."""
    answer = type("ThisAnswer", (Answer,), {})
    httpd = HTTPServer(("127.0.0.1", 0), answer)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    announce(runtime, httpd.server_port)
    yield answer
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def announce(runtime: Path, port: int) -> None:
    info = {
        "url": f"http://127.0.0.1:{port}/",
        "port": port,
        "token": "s3cret",
        "root_dir": "/home/ann",
        "pid": os.getpid(),
    }
    (runtime / "jpserver-1.json").write_text(json.dumps(info))


def test_no_server(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "No Jupyter server of this user is running." in shown
    assert main(["status", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    assert model["servers"] == []
    local = model["local"]
    # With a real GPU this machine's are listed; without, the reason is given.
    assert bool(local["gpus"]) is not local["simulated"]
    assert local["backend"].split(".")[0] in " ".join(shown.split())


def test_status_of_a_server(
    at_server: TestServer, run: Run[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = run(at_server.open("work/train.ipynb"))
    assert run(notebook.run("1 + 1")).status == "ok"

    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert at_server.url in shown
    assert "using 2 simulated GPUs of 512 MiB" in shown
    assert "Simulated GPUs" in shown
    assert "Kernels on simulated GPUs" in shown
    assert "Energy: none told (simulated GPUs)." in shown
    (kernel,) = (line for line in shown.splitlines() if "work/train.ipynb" in line)
    assert notebook.kernel_id[:8] in kernel
    assert "bound" in kernel
    for uuid in ("SIM-GPU-0", "SIM-GPU-1"):
        row = next(line for line in shown.splitlines() if line.strip().startswith(uuid))
        assert "512 MiB" in row
        assert "ready" in row
        assert "none" in row

    assert main(["status", "--json"]) == 0
    printed = capsys.readouterr().out
    assert at_server.token not in printed
    model = json.loads(printed)
    (one,) = model["servers"]
    assert model["local"] is None
    assert (one["url"], one["extension"], one["problem"]) == (at_server.url, True, None)
    assert one["gpus"]["simulated"] is True
    assert [kernel["id"] for kernel in one["kernels"]] == [notebook.kernel_id]


def test_status_shows_cordon_and_risk(
    at_server: TestServer, run: Run[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base = "jupyter-gpu-predict/api/v1/gpus/SIM-GPU-1"
    run(at_server.post(f"{base}/cordon"))
    try:
        assert main(["status"]) == 0
    finally:
        run(at_server.post(f"{base}/uncordon"))
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.strip().startswith("SIM-GPU-1"))
    assert "cordoned" in row


def test_snapshots_by_the_server_and_from_its_folder(
    at_server: TestServer,
    run: Run[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert main(["snapshots"]) == 0
    assert f"There are no snapshots in {at_server.url}." in capsys.readouterr().out

    notebook = run(at_server.open("work/save.ipynb"))
    saved = run(notebook.run("x = list(range(1000))\n%gpu snapshot before-lunch"))
    assert saved.status == "ok", saved.text
    assert main(["snapshots"]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "before-lunch" in line)
    assert "work/save.ipynb" in row

    assert main(["snapshots", "--json"]) == 0
    (by_server,) = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    assert main(["snapshots", "--json"]) == 0
    (by_folder,) = json.loads(capsys.readouterr().out)
    assert by_server["source"] == at_server.url
    assert by_folder["source"] == str(at_server.folder / "data" / "gpu-predict" / "snapshots")
    assert by_folder["snapshots"] == by_server["snapshots"]
    assert by_folder["snapshots"][0]["name"] == "before-lunch"


def test_looking_for_snapshots_makes_no_folder(
    runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["snapshots"]) == 0
    assert "does not exist yet" in " ".join(capsys.readouterr().out.split())
    assert not (runtime.parent / "data").exists()


def test_a_server_without_the_extension(
    run: Run[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running(TestServer(tmp_path / "plain", extension=False), run) as plain:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(plain.folder / "runtime"))
        monkeypatch.setenv("JUPYTER_DATA_DIR", str(plain.folder / "data"))
        assert main(["status"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "runs without jupyter_gpu_predict" in shown
        assert "jupyter gpu doctor" in shown
        assert main(["status", "--json"]) == 0
        model = json.loads(capsys.readouterr().out)
        assert model["servers"][0]["extension"] is False
        assert model["local"] is not None


@pytest.fixture
def saved(runtime: Path) -> str:
    """A user without a server, and a snapshot of theirs; return its id."""
    data = runtime.parent / "data" / "gpu-predict"
    namespace: dict[str, Any] = dict(types.ModuleType("__main__").__dict__)
    exec("import numpy as np; a = np.arange(5000.0); b = a[:9]; c = {'k': [1, {2}]}", namespace)
    report = capture(
        namespace,
        open_store(data / "snapshots"),
        load_or_create_key(data / "snapshot.key"),
        name="before-lunch",
        now_s=1.7e9,
        kernel_id="k",
    )
    return report.snapshot_id


def test_show_a_snapshot(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshots", "show", "before-lunch"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"before-lunch ({saved}): 4 variables" in shown
    assert "a numpy.ndarray (5000,) float64; 39.13 KiB; shares with b" in shown
    assert "['k'] list of 2" in shown
    assert main(["snapshots", "show", saved, "--depth", "0", "--only", "c, a"]) == 0
    shown = capsys.readouterr().out
    assert "c  dict of 1" in shown
    assert "['k']" not in shown
    assert "b  numpy" not in shown
    assert main(["snapshots", "--json", "show"]) == 0
    model = json.loads(capsys.readouterr().out)
    assert [v["label"] for v in model["variables"]] == ["np", "a", "b", "c"]


def test_verify_a_snapshot(saved: str, runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshots", "verify", "before-lunch"]) == 0
    assert "comes back as it was saved" in capsys.readouterr().out
    assert main(["snapshots", "list", "--json"]) == 0
    (catalogue,) = json.loads(capsys.readouterr().out)
    assert catalogue["snapshots"][0]["verified"] is True
    folder = runtime.parent / "data" / "gpu-predict" / "snapshots"
    (pack,) = (folder / "packs").iterdir()
    good = pack.read_bytes()
    pack.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert main(["snapshots", "verify", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["verified"] is False
    assert "damaged" in report["problems"][0]
    assert main(["snapshots", "list"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if saved in line)
    assert " NO " in row


def test_export_collect_and_delete(
    saved: str, runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    command = ["snapshots", "export", saved, "--format", "safetensors", "--output", str(out)]
    assert main([*command, "--only", "a,b"]) == 0
    shown = capsys.readouterr().out
    assert f"Wrote {out}" in shown
    assert "b shares memory with a and was copied" in shown
    assert out.stat().st_size > 40_072
    assert main([*command, "--only", "c", "--json"]) == 1
    assert "no arrays or tensors" in capsys.readouterr().err

    assert main(["snapshots", "gc"]) == 0
    assert "0 B freed" in capsys.readouterr().out
    assert main(["snapshots", "delete", "no-such"]) == 1
    assert "there is no snapshot 'no-such'" in capsys.readouterr().err
    assert main(["snapshots", "delete", "before-lunch", saved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": [saved]}
    folder = runtime.parent / "data" / "gpu-predict" / "snapshots"
    assert list((folder / "packs").iterdir()) == []
    assert main(["snapshots", "show"]) == 1
    assert "there are no snapshots" in capsys.readouterr().err


def test_another_store_and_key(
    saved: str, runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = runtime.parent / "data" / "gpu-predict"
    moved = tmp_path / "moved"
    (data / "snapshots").rename(moved)
    assert main(["snapshots", "show"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["snapshots", "--store", str(moved)]) == 0
    assert "before-lunch" in capsys.readouterr().out
    assert main(["snapshots", "show", "--store", moved.as_uri()]) == 0
    key = data / "snapshot.key"
    key.rename(tmp_path / "key")
    capsys.readouterr()
    assert main(["snapshots", "show", "--store", str(moved)]) == 1
    assert "there is no key" in capsys.readouterr().err
    assert not key.exists()
    arguments = ["--store", str(moved), "--key", str(tmp_path / "key")]
    assert main(["snapshots", *arguments, "show", saved]) == 0
    load_or_create_key(key)
    assert main(["snapshots", "show", "--store", str(moved)]) == 1
    assert "another key" in capsys.readouterr().err
    (data / "snapshots").mkdir()
    config = runtime.parent / "config"
    config.mkdir()
    (config / "jupyter_server_config.json").write_text(
        json.dumps({"GpuPredict": {"snapshot_store": str(moved)}})
    )
    assert main(["snapshots", "list"]) == 0
    assert "before-lunch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "said"),
    [(500, "answered 500: the store is on fire"), (302, "refuses its own token"), (403, "refuses")],
)
def test_an_ill_server_is_one_sentence(
    ill_server: type[Answer], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ill_server.status = status
    assert main(["status"]) == 1
    shown = capsys.readouterr()
    assert said in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert "s3cret" not in shown.out + shown.err
    assert main(["snapshots"]) == 0
    assert said in capsys.readouterr().err


def test_an_answer_that_is_no_json(
    ill_server: type[Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    ill_server.status, ill_server.body = 502, b"<html>Bad gateway</html>"
    assert main(["status"]) == 1
    assert "answered 502: Bad Gateway" in capsys.readouterr().out
    ill_server.status = 200
    assert main(["status"]) == 1
    assert "no JSON" in capsys.readouterr().out


def test_a_server_that_does_not_listen(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    announce(runtime, 1)
    assert main(["status"]) == 1
    assert "http://127.0.0.1:1/ cannot be asked" in capsys.readouterr().out


def test_doctor_through_the_jupyter_command(runtime: Path) -> None:
    """One real run: the throw-away kernel answers, and a fault of the user's is found."""
    data = runtime.parent / "data" / "gpu-predict"
    data.mkdir(parents=True)
    key = data / "snapshot.key"
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    jupyter = Path(sys.executable).with_name("jupyter")
    done = subprocess.run(
        [jupyter, "gpu", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    model = json.loads(done.stdout)
    checks = {check["name"]: check for check in model["checks"]}
    assert model["ok"] is False
    failed = [name for name, check in checks.items() if check["ok"] is False]
    assert [name for name in failed if name not in {"torch and CUDA match"}] == ["snapshot key"]
    assert str(key) in checks["snapshot key"]["remedy"]
    assert "agent and %gpu answered" in checks["agent in a real kernel"]["detail"]
    assert sorted(p.name for p in data.iterdir()) == ["snapshot.key"]


def test_version_help_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (
        (["--version"], 0),
        (["--help"], 0),
        (["snapshots", "--help"], 0),
        ([], 2),
        (["nothing"], 2),
        (["snapshots", "nothing"], 2),
        (["snapshots", "export"], 2),
        (["snapshots", "show", "--depth", "-1"], 2),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
    shown = capsys.readouterr()
    assert f"jupyter-gpu-predict {__version__}" in shown.out
    actions = ("list", "show", "verify", "export", "gc", "delete")
    for command in ("status", "doctor", "snapshots", "demo", *actions):
        assert command in shown.out


def test_demo_gets_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--help"])
    assert ended.value.code == 0
    assert "usage: jupyter gpu demo" in capsys.readouterr().out
