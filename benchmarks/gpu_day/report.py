"""Formats gpu_day.json as Markdown."""

from typing import Any


def markdown(results: dict[str, Any]) -> str:
    """One row for each step, then the details of each."""
    steps = results["steps"]
    packages = ", ".join(map(" ".join, results["packages"].items())) or "no NVIDIA packages"
    lines = ["# GPU results", "", f"{results['date']}, Python {results['python']}; {packages}", ""]
    if results["day"]["stand_in"]:
        lines += ["**No GPU was used: the driver was simulated and kernels ran on the CPU. Times mean nothing.**", ""]
    lines += ["| step | state | seconds | |", "| -- | -- | --: | -- |"]
    for name, step in steps.items():
        why = step["why"].splitlines()[-1] if step["why"] else summary(step["found"])
        lines.append(f"| {name} | {step['state']} | {step['seconds']:.0f} | {why.replace('|', '/')} |")
    for name, step in steps.items():
        lines += ["", f"## {name}", "", *(f"- {key}: {value}" for key, value in step["found"].items())]
        lines += ["```text", step["why"], "```"] * ("\n" in step["why"])
    return "\n".join(lines) + "\n"


def summary(found: dict[str, Any]) -> str:
    """A step's results in one line."""
    if "of the limit" in found:
        limit = f"{found['of the limit']} times the minimum ({found['minimum ms']} ms)"
        return f"{found['ms per step']} ms per step with {found['by']}, {limit}, {found['step']}"
    if "cases" in found:
        return f"same tokens as the CPU in {found['cases']} cases, {found['ms per step']} ms per step, {found['step']}"
    if "turns" in found:
        return f"same results as the CPU in {found['turns']} random cases of every kernel, {found['near']} near ties"
    return "; ".join(f"{key}: {each}" for key, each in found.items() if isinstance(each, str | float))
