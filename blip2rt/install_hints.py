"""The pip commands for error messages. They install from where this installation came from: checkout, file, repository.

Imports happen in the functions, because only errors need them.
"""

from __future__ import annotations

from pathlib import Path

# The two packages share files, so one must go first. Installing blip2rt later brings onnxruntime back.
ONNXRUNTIME_GPU = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"


def pip_install(*extras: str) -> str:
    """The command, as in pip install 'blip2rt[train]'; in a checkout, its folder replaces the name."""
    import shlex

    chosen = f"[{','.join(extras)}]" if extras else ""
    name, origin = _origin()
    return f"pip install {shlex.quote(f'{name}{chosen}{origin}')}"


def install_nano() -> str:
    """The command that installs nano from where blip2rt came from: an index, a checkout or a repository."""
    import shlex

    name, origin = _origin()
    if origin:
        return f"pip install {shlex.quote(f'blip2rt-nano{origin}#subdirectory=packages/nano')}"
    folder = Path(name, "packages", "nano")
    return f"pip install {shlex.quote(str(folder)) if folder.is_dir() else 'blip2rt-nano'}"


def _origin() -> tuple[str, str]:
    """What replaces the package's name, and what follows the extras."""
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
