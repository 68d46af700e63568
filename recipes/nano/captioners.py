"""Plot the CIDEr of small captioners against their parameters, from the table in docs/nano.md:

    python recipes/nano/captioners.py docs/nano.md --out docs/nano/captioners.svg

The table has the columns model, CIDEr, parameters (their first number counts) and time. A time is written beside the
point, without what stands in brackets.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from blip2rt.bundle.atomic import write_file
from blip2rt.command_line import Parser, run
from blip2rt.errors import Blip2rtError

COLUMNS = "| model | CIDEr | parameters, millions | time |"


def read_table(page: Path) -> list[tuple[str, float, float, str]]:
    """Return model, CIDEr, parameters and time of each row."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith(COLUMNS)), None)
    if start is None:
        raise Blip2rtError(f"{page} has no table that begins with {COLUMNS!r}: give docs/nano.md")
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        model, cider, parameters, time = (cell.strip() for cell in line.split("|")[1:5])
        time = re.sub(r" *\(.*", "", time)
        millions = re.search(r"\d+", parameters)
        assert millions, f"no number of parameters in {line!r}"
        found.append((model, float(cider), float(millions[0]), "" if time == "-" else time))
    return found


def draw(page: Path, out: Path) -> None:
    """Write the plot, with its texts as texts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = {"svg.fonttype": "none", "svg.hashsalt": "nano", "font.family": "sans-serif", "font.size": 9}
    with plt.rc_context(settings):
        figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
        for model, cider, parameters, time in read_table(page):
            own = model.startswith("nano")
            axis.plot(parameters, cider, "o", color="tab:orange" if own else "tab:blue")
            label = f"{model}, {time}" if time else model
            axis.annotate(label, (parameters, cider), (6, 5), textcoords="offset points")
        axis.set(xlim=(0, 360), ylim=(60, 150), xlabel="parameters, millions", ylabel="CIDEr on COCO (splits differ)")
        axis.grid(alpha=0.3)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        plt.close(figure)
    write_file(out, drawn.getvalue())


def main() -> int:
    parser = Parser(prog="captioners.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, help="docs/nano.md")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="SVG to write")

    def work() -> None:
        args = parser.parse_args()
        draw(args.page, args.out)

    return run("captioners.py", work, extra="train")


if __name__ == "__main__":
    raise SystemExit(main())
