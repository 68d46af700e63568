"""Formats gpu_day.json as Markdown."""

from __future__ import annotations

from typing import Any


def markdown(results: dict[str, Any]) -> str:
    """One row for each step, then the details of each."""
    steps, day = results["steps"], results["day"]
    packages = ", ".join(map(" ".join, day["packages"].items())) or "no NVIDIA packages"
    lines = [f"# GPU results: {day['card']}", "", f"{results['date']}, Python {results['python']}; {packages}", ""]
    if day["stand_in"]:
        lines += ["**No GPU was used: the driver was simulated and kernels ran on the CPU. Times mean nothing.**", ""]
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
    """A step's results in one line."""
    if "of the limit" in found:
        limit = f"{found['of the limit']} times the minimum ({found['minimum ms']} ms)"
        return f"{found['ms per step']} ms per step with {found['by']}, {limit}, {found['step']}"
    if "cases" in found:
        text = f"same tokens as the CPU in {found['cases']} cases, {found['ms per step']} ms per step"
        return text + (f", {found['step']}" if "step" in found else "")
    if "turns" in found:
        return f"same results as the CPU in {found['turns']} random cases of every kernel, {found['near']} near ties"
    if "GB/s" in found:
        return f"{found['GB/s']} GB/s read and written in device memory"
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
