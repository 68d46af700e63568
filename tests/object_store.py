"""moto's server as a bucket named `bucket`, on this machine."""

from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from blip2rt import object_storage
from blip2rt.object_storage import Url


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Url]:
    """The bucket. Clients find its server by the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    pytest.importorskip("pyarrow.fs")
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    names |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    for method, path in (("POST", "moto-api/reset"), ("PUT", "bucket")):  # another test's objects
        urlopen(Request(f"http://{host}:{port}/{path}", method=method)).close()
    yield Url.parse("s3://bucket")
    object_storage._open_system.cache_clear()  # clients of this server
    server.stop()


def put(bucket: Url, files: dict[str, Path]) -> None:
    """Upload files by their names in the bucket."""
    for name, path in files.items():
        with bucket.system.open_output_stream((bucket / name).path) as out:
            out.write(path.read_bytes())


def get(folder: Url) -> dict[str, bytes]:
    """The objects of a folder by their names in it."""
    return {str(url).removeprefix(f"{folder}/"): url.read() for url, _ in folder.objects()}
