"""The pip commands for error messages. They install from where this installation came from: checkout, file, repository.

Imports happen in the functions, because only errors need them.
"""

from pathlib import Path


def pip_install(*extras: str) -> str:
    """The command, as in pip install 'blip2rt[train]'; in a checkout, its folder replaces the name."""
    import shlex

    chosen = f"[{','.join(extras)}]" if extras else ""
    name, origin = _origin()
    return f"pip install {shlex.quote(f'{name}{chosen}{origin}')}"


def install_module(module: str, extra: str = "") -> str:
    """The command that installs a missing module, by `extra` or the smallest other extra that has it."""
    import re
    from importlib import metadata

    extras: dict[str, list[str]] = {}  # -> packages
    try:
        requirements = metadata.requires("blip2rt") or []
    except metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        if named := re.search(r"extra == ['\"](.+?)['\"]", requirement):
            extras.setdefault(named[1], []).append(re.split(r"[^\w.-]", requirement)[0])
    package = module.partition(".")[0].replace("_", "-")
    having = sorted((len(packages), name) for name, packages in extras.items() if package in packages)
    if having and extra not in (name for _, name in having):
        extra = having[0][1]
    return pip_install(extra) if extra else f"pip install {package}"


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
