"""The pip commands that install parts of blip2rt from where this one came: a checkout, a file, a repository, an index.

What it reads is imported where it is read: errors alone need it.
"""

from __future__ import annotations

from pathlib import Path

# Both packages have the files of one, so one of them goes first. blip2rt, installed later, brings the other back.
ONNXRUNTIME_GPU = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"


def pip_install(*extras: str) -> str:
    """The command, e.g. pip install 'blip2rt[train]'; of a checkout, with its folder in the name's place."""
    import shlex

    wanted = f"[{','.join(extras)}]" if extras else ""
    name, origin = _origin()
    return f"pip install {shlex.quote(f'{name}{wanted}{origin}')}"


def _origin() -> tuple[str, str]:
    """What pip takes in place of the name, and what follows the extras."""
    import json
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "engines").is_dir():
        return str(checkout), ""
    try:
        source = json.loads(metadata.distribution("blip2rt").read_text("direct_url.json") or "{}")
        url = urlsplit(source.get("url", ""))
    except (metadata.PackageNotFoundError, ValueError):
        return "blip2rt", ""
    if url.scheme == "file" and Path(unquote(url.path)).exists():
        return unquote(url.path), ""
    if vcs := source.get("vcs_info"):
        return "blip2rt", f" @ {vcs['vcs']}+{url.geturl()}"
    return "blip2rt", ""
