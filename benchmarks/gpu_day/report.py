"""The day as a page of Markdown. Knows the JSON alone."""

from __future__ import annotations

from typing import Any


def markdown(whole: dict[str, Any]) -> str:
    """A line for each step, and what it found below."""
    steps = whole["steps"]
    packages = ", ".join(map(" ".join, whole["day"]["packages"].items())) or "no package of NVIDIA's"
    lines = [f"# A day on {whole['day']['card']}", "", f"{whole['date']}, Python {whole['python']}; {packages}", ""]
    if whole["day"]["stand_in"]:
        lines += ["**No GPU took part: a driver stood in, and the kernels ran on the CPU. Times mean nothing.**", ""]
    lines += ["| step | state | seconds | |", "| -- | -- | --: | -- |"]
    for name, step in steps.items():
        why = step["why"].splitlines()[-1] if step["why"] else summary(name, step["found"])
        lines.append(f"| {name} | {step['state']} | {step['seconds']:.0f} | {why.replace('|', '/')} |")
    for name, step in steps.items():
        if step["found"]:
            lines += ["", f"## {name}", "", *_details(step["found"])]
        elif "\n" in step["why"]:
            lines += ["", f"## {name}", "", "```text", step["why"], "```"]
    return "\n".join(lines) + "\n"


def summary(name: str, found: dict[str, Any]) -> str:
    """One line of what a step found."""
    if "of the limit" in found:
        return (f"{found['ms a step']} ms a step by {found['by']}, {found['of the limit']} times the least "
                f"({found['least ms']} ms), {found['step']}")  # fmt: skip
    if "cases" in found:
        said = f"tokens as on the CPU in {found['cases']} cases, {found['ms a step']} ms a step"
        return said + (f", {found['step']}" if "step" in found else "")
    if "turns" in found:
        return f"as on the CPU in {found['turns']} random cases of every kernel, {found['near']} near ties"
    if "GB/s" in found:
        return f"{found['GB/s']} GB/s read and written within the device"
    return "; ".join(f"{key}: {each}" for key, each in found.items() if isinstance(each, str))


def _details(found: dict[str, Any]) -> list[str]:
    lines = []
    for key, each in found.items():
        if key == "findings":
            lines += [f"- {line['name']}: {line['state']}, {line['text']}" for line in each]
        elif isinstance(each, list):
            lines += [f"- {key}: {one}" for one in each] or [f"- {key}: none"]
        elif isinstance(each, dict):
            lines.append(f"- {key}: " + ", ".join(f"{inner} {value}" for inner, value in each.items()))
        else:
            lines.append(f"- {key}: {each}")
    return lines
