"""Training curves: the log of a run as a picture."""

from __future__ import annotations

import json
from pathlib import Path


def draw(logs: list[Path], out: Path) -> None:
    """Plot the held-out loss of runs, with right and with shuffled sources, and their chrF.

    Args:
        logs: ``log.jsonl`` of each run; its folder names the panel.
        out: PNG file to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(logs), figsize=(5 * len(logs), 3.4), squeeze=False)
    for axis, log in zip(axes[0], logs, strict=True):
        records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        steps = [record for record in records if record["event"] == "step"]
        for name in [k.removesuffix("_loss") for k in steps[-1] if k.endswith("_loss")]:
            x = [record["step"] for record in steps]
            (line,) = axis.plot(x, [record[f"{name}_loss"] for record in steps], label=name)
            axis.plot(x, [record[f"{name}_shuffled"] for record in steps], ":", color=line.get_color())
        axis.set(title=log.parent.name, xlabel="updates", ylabel="nats per piece")
        axis.grid(alpha=0.3)
        axis.legend(title="held-out set (dotted: shuffled source)", fontsize=7, title_fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=90, bbox_inches="tight")
    pyplot.close(figure)
