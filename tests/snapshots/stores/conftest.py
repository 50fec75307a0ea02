from __future__ import annotations

import secrets

import boto3
import pytest
from store_servers import RedisServer, S3Server

from jupyter_gpu_predict.snapshots.stores import open_store


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """Return the URL of a new bucket, with what leads to it in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{secrets.token_hex(4)}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    client.close()
    return f"s3://{bucket}/some/where"


@pytest.fixture(params=["local", "memory", "s3", "redis"])
def url(request, tmp_path):
    """Return where a new store may be, of each kind."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{secrets.token_hex(8)}/store"
    if request.param == "s3":
        return request.getfixturevalue("s3")
    server = request.getfixturevalue("redis_server")
    return f"redis://{server.address}/0?prefix={secrets.token_hex(8)}"


@pytest.fixture
def store(url):
    return open_store(url)
