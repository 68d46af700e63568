"""moto's server as a bucket named `bucket`, on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from blip2rt.gallery import sources


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its file system of fsspec. Clients find it by the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (names | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # of another test
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("bucket")
    yield system
    sources._opened.cache_clear()  # clients of this server
    server.stop()


def put(system: Any, files: dict[str, Path]) -> None:
    """Upload files by their names in the bucket."""
    for name, path in files.items():
        system.pipe_file(f"bucket/{name}", path.read_bytes())
