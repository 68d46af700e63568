"""The files in docker/, as far as they can be checked without Docker and systemd."""

import json
import re
from pathlib import Path

import pytest

from blip2rt.cli import HANDLERS, build_parser
from blip2rt.serve.cli import settings_from
from blip2rt.serve.settings import QueueLimits, Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def test_image_listens_without_root_and_has_a_health_check() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    program, *words = json.loads(entry)
    assert program == "blip2rt" and settings_from(build_parser(HANDLERS).parse_args(words)).host == "0.0.0.0"
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE) and "STOPSIGNAL SIGTERM" in text
    assert "/ready" in text.partition("HEALTHCHECK")[2].partition("ENTRYPOINT")[0]
    for source in re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE):
        assert (ROOT / source).exists()


def test_compose_drops_rights_and_waits_for_the_drain() -> None:
    yaml = pytest.importorskip("yaml")
    [service] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"].values()
    assert (DOCKER / service["build"]["context"]).resolve() == ROOT and (ROOT / service["build"]["dockerfile"]).exists()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert int(service["stop_grace_period"].rstrip("s")) > QueueLimits.drain_seconds + Settings.drain_delay


def test_systemd_unit_drops_rights_and_waits_for_the_drain() -> None:
    unit = dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / "blip2rt.service").read_text(), re.MULTILINE))
    assert unit["ExecStart"].split()[1] == "serve" and unit["DynamicUser"] == unit["NoNewPrivileges"] == "yes"
    assert int(unit["TimeoutStopSec"]) > QueueLimits.drain_seconds + Settings.drain_delay


def column(name: str) -> dict[str, str]:
    """A column of the page's table of JetPacks: row -> cell."""
    lines = [line for line in (ROOT / "docs" / "jetson.md").read_text().splitlines() if line.startswith("|")]
    head = next(i for i, line in enumerate(lines) if name in line)
    at = [cell.strip() for cell in lines[head].split("|")].index(name)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[head + 2 :]]
    return {row[1]: row[at] for row in rows[:8]}


def test_every_jetpack_has_an_image() -> None:
    """With the CUDA, TensorRT and extra of the page; every copied path exists."""
    for name in ("JetPack 6.2", "JetPack 7.2"):
        page = column(name)
        file = ROOT / page["container"].strip("`")
        text = file.read_text()
        assert f"CUDA {page['CUDA']}" in text and f"TensorRT {page['TensorRT']}" in text
        extra = page["blip2rt's extra"].strip("`")
        assert f"/src[{extra}]" in text
        assert "--system-site-packages" in text and "--runtime nvidia" in text
        [base] = re.findall(r"^ARG BASE=(.*)$", text, re.MULTILINE)
        assert page["TensorRT"] in base or (page["CUDA"] in base and f"TENSORRT={page['TensorRT']}.*" in text)
        for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
            assert (ROOT / source).exists()
