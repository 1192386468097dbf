"""Tables (Markdown), plots (PNG) and one self-contained page (HTML) of the benchmarks' results."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from bench.harness import JsonObject, describe

mpl.use("Agg")

from matplotlib import pyplot as plt

GOAL_COLOR = "#b03a2e"
COLORS = {
    "distinct cold": "#1f6f8b",
    "feed cold": "#3a9d5d",
    "distinct warm": "#d98324",
    "feed warm": "#7d5ba6",
}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-size: 13px; margin: 1rem 0 }}
td, th {{ border: 1px solid #ddd; padding: 2px 8px; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
tr:nth-child(even) {{ background: #f7f7f7 }} img {{ max-width: 100% }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""

Table = tuple[Sequence[str], list[Sequence[str]]]


# Formats


def milliseconds(seconds: float) -> str:
    """A latency for a table."""
    if math.isnan(seconds):
        return "-"
    return f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def number(value: float) -> str:
    """A rate for a table."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def share(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{100 * value:.0f} %"


def markdown_table(table: Table) -> str:
    """A table whose first column is text and whose others are numbers."""
    head, rows = table
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def html_table(table: Table) -> str:
    """The same for the page."""

    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head, rows = table
    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


# Load test


def load_tables(result: JsonObject) -> dict[str, Table]:
    """The tables of `make load` by title."""
    rows = [
        [
            row["name"],
            str(row["callers"]),
            str(row["list"]),
            number(row["calls_per_second"]),
            number(row["comments_per_second"]),
            *(milliseconds(row[key]) for key in ("p50", "p95", "p99")),
            ", ".join(f"{code} {count}" for code, count in row["errors"].items()) or "0",
            share(row["hit_rate"]),
            "-" if row["mean_batch"] is None else f"{row['mean_batch']:.1f}",
            share(row["padding_share"]),
        ]
        for row in result["rows"]
    ]
    head = "run", "callers", "list", "calls/s", "comments/s", "p50 ms", "p95 ms", "p99 ms", "errors", "hits"
    points = [
        [
            f"{point['offered']} calls/s",
            number(point["answered"]),
            *(milliseconds(point[key]) for key in ("p50", "p95", "p99")),
            str(point["refused"]),
        ]
        for point in result["open_loop"]
    ]
    return {
        "Closed loop: callers that wait for their answer": ((*head, "batch", "padding"), rows),
        "Open loop: calls on a schedule, cold cache": (
            ("offered", "answered/s", "p50 ms", "p95 ms", "p99 ms", "refused"),
            points,
        ),
        "Overload": (("ten times the capacity", ""), overload_rows(result["overload"])),
    }


def overload_rows(overload: JsonObject) -> list[Sequence[str]]:
    """What `make load` found at ten times the capacity."""
    calls = sum(overload["codes"].values())
    other = {code: n for code, n in overload["codes"].items() if code not in ("OK", "ResourceExhausted")}
    return [
        ("offered, and reached, calls/s", f"{overload['offered']:,} / {overload['offered_in_fact']:,.0f}"),
        ("accepted", f"{overload['accepted']:,} ({overload['accepted_per_second']:,.0f} per second)"),
        ("refused: RESOURCE_EXHAUSTED", share(overload["codes"].get("ResourceExhausted", 0) / calls if calls else 0)),
        ("other errors", ", ".join(f"{code} {n}" for code, n in other.items()) or "none"),
        (
            "refusals looked into, with RetryInfo",
            f"{overload['refusals_with_retry_info']} of {overload['refusals_seen']}",
        ),
        ("p50 of the accepted, ms", milliseconds(overload["p50"])),
        ("p99 of the accepted, ms", milliseconds(overload["p99"])),
        ("p99 at the lowest rate of the open loop, ms", milliseconds(overload["unloaded_p99"])),
        ("ratio of the two", f"{overload['p99_ratio']:.1f}"),
        (
            "memory before, at most, MiB",
            " / ".join(f"{overload[k] / 2**20:.0f}" for k in ("memory_before", "memory_peak")),
        ),
    ]


def load_markdown(result: JsonObject) -> str:
    """The report of `make load`."""
    flags = f" Server flags: `{' '.join(result['server_flags'])}`." if result.get("server_flags") else ""
    knee = result["knee"]
    parts = [
        "# Load test",
        describe(result["machine"]) + "." + flags,
        "ghz and the server share these cores. A list is the number of comments in a call.",
    ]
    for title, table in load_tables(result).items():
        parts += [f"## {title}", markdown_table(table)]
        if title.startswith("Open loop"):
            found = (
                f"{knee['offered']} calls/s (p99 {milliseconds(knee['p99'])} ms)" if knee else "below the lowest rate"
            )
            parts.append(f"Knee: {found}.")
    return "\n\n".join(parts) + "\n"


def write_load(result: JsonObject, target: Path) -> None:
    """Write ``target`` as .md, .png and .html."""
    figure = load_figure(result)
    target.with_suffix(".md").write_text(load_markdown(result), encoding="utf-8")
    tables = "".join(f"<h2>{html.escape(t)}</h2>{html_table(table)}" for t, table in load_tables(result).items())
    _write_figure(figure, target, "Load test", f"<p>{html.escape(describe(result['machine']))}</p>", tables)


def load_figure(result: JsonObject) -> Any:
    """Four panels: throughput and latency by callers, latency by offered rate, memory under overload."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), constrained_layout=True)
    (throughput, latency), (open_loop, memory) = axes
    for name, color in COLORS.items():
        rows = [row for row in result["rows"] if row["name"] == name and row["list"] == 1]
        if not rows:
            continue
        callers = [row["callers"] for row in rows]
        throughput.plot(callers, [row["calls_per_second"] for row in rows], "o-", color=color, label=name)
        latency.plot(callers, [1000 * row["p50"] for row in rows], "o-", color=color, label=f"{name}, p50")
        latency.plot(callers, [1000 * row["p99"] for row in rows], "^:", color=color, label=f"{name}, p99")
    throughput.set(title="Calls per second, one comment a call", xlabel="callers", ylabel="calls/s")
    latency.set(title="Latency: p50 solid, p99 dotted", xlabel="callers", ylabel="ms")
    for axis in (throughput, latency):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ticks = sorted({row["callers"] for row in result["rows"]})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    throughput.legend(fontsize=9)
    points = result["open_loop"]
    offered = [point["offered"] for point in points]
    for key, style in (("p50", "o-"), ("p95", "s--"), ("p99", "^:")):
        open_loop.plot(
            offered, [1000 * point[key] for point in points], style, color=COLORS["distinct cold"], label=key
        )
    if result["knee"]:
        open_loop.axvline(
            result["knee"]["offered"], color=GOAL_COLOR, lw=1, label=f"knee: {result['knee']['offered']}/s"
        )
    open_loop.set(title="Calls on a schedule, cold cache", xlabel="offered calls/s", ylabel="ms", yscale="log")
    open_loop.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    open_loop.legend(fontsize=9)
    overload = result["overload"]
    samples = [size / 2**20 for _, size in overload["memory"]]
    memory.plot([moment for moment, _ in overload["memory"]], samples, color=COLORS["distinct cold"])
    refused = share(overload["codes"].get("ResourceExhausted", 0) / max(1, sum(overload["codes"].values())))
    memory.set(
        title=f"Ten times the capacity: {refused} refused, p99 {milliseconds(overload['p99'])} ms",
        xlabel="seconds",
        ylabel="resident MiB",
        ylim=(0, 1.3 * max(samples)),
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3, which="both" if axis is not memory else "major")
    figure.suptitle(describe(result["machine"]).partition(", ctranslate2")[0], fontsize=10, color="#555")
    return figure


# Throughput side by side


def throughput_tables(result: JsonObject) -> dict[str, Table]:
    """The tables of `make bench` by title."""
    head = "contestant", "comments/s", "each round", "ours cold is faster by", "CPU ms a comment", "ours takes less by"
    tables: dict[str, Table] = {}
    for title, model in result["models"].items():
        rows: list[Sequence[str]] = []
        for name, row in model["contestants"].items():
            if not row["rates"]:
                rows.append((name, "not run", row["note"], "-", "-", "-"))
                continue
            rates = ", ".join(number(rate) for rate in row["rates"])
            cpu = f"{row['cpu_ms_median']:.2f}", f"{row['cpu_ratio']:.2f} x"
            rows.append((name, number(row["median"]), rates, f"{row['ratio']:.2f} x", *cpu))
        tables[title] = (head, rows)
    return tables


def throughput_markdown(result: JsonObject) -> str:
    """The report of `make bench`."""
    parts = ["# Throughput side by side", describe(result["machine"]) + ".", result["method"]]
    for title, table in throughput_tables(result).items():
        parts += [f"## {title}", markdown_table(table)]
    return "\n\n".join(parts) + "\n"


def write_throughput(result: JsonObject, target: Path) -> None:
    """Write ``target`` as .md, .png and .html."""
    target.with_suffix(".md").write_text(throughput_markdown(result), encoding="utf-8")
    tables = "".join(f"<h2>{html.escape(t)}</h2>{html_table(table)}" for t, table in throughput_tables(result).items())
    about = "".join(f"<p>{html.escape(text)}</p>" for text in (describe(result["machine"]), result["method"]))
    _write_figure(throughput_figure(result), target, "Throughput side by side", about, tables)


def throughput_figure(result: JsonObject) -> Any:
    """A panel of bars for each model."""
    models = result["models"]
    figure, axes = plt.subplots(len(models), 1, figsize=(10, 3.2 * len(models)), constrained_layout=True, squeeze=False)
    for axis, (title, model) in zip(axes.flat, models.items(), strict=True):
        shown = {name: row for name, row in model["contestants"].items() if row["rates"]}
        names = list(shown)[::-1]
        medians = [shown[name]["median"] for name in names]
        colors = [COLORS["feed cold"] if name.startswith("ours") else "#9aa5ad" for name in names]
        bars = axis.barh(names, medians, color=colors)
        for name, bar, middle in zip(names, bars, medians, strict=True):
            rates = shown[name]["rates"]
            height = bar.get_y() + bar.get_height() / 2
            axis.plot(rates, [height] * len(rates), "k|", ms=9)
            # Beside the fastest round, so that no mark crosses the number.
            axis.text(max(rates) * 1.08, height, number(middle), va="center")
        axis.set(
            title=title, xlabel="comments/s (logarithmic)", xscale="log", xlim=(min(medians) / 2, max(medians) * 3)
        )
        axis.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
        axis.grid(alpha=0.3, axis="x")
    return figure


def _write_figure(figure: Any, target: Path, title: str, head: str, tables: str) -> None:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    plt.close(figure)
    target.with_suffix(".png").write_bytes(png.getvalue())
    image = f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'
    page = PAGE.format(title=title, body=head + image + tables)
    target.with_suffix(".html").write_text(page, encoding="utf-8")
