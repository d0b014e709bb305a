"""What the race shows: lines while it runs, tables in Markdown, a chart, and a file."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamella.terminal import styled

WIDTHS = (20, 12, 10, 10, 10, 9, 9, 9, 9, 9, 10)
HEADINGS = ("workload", "server", "answers/s", "least", "most", "p50 ms", "p99 ms", "ratio", "least", "most", "MB")

STYLES = {  # colour and marker in the chart
    "lamella": ("#d1495b", "o"),
    "FastAPI": ("#30638e", "s"),
    "mosec": ("#5aa469", "v"),
    "LitServe": ("#6baed6", "D"),
    "KServe": ("#8d6b94", "^"),
    "Triton": ("#12304a", "P"),
}


def row(cells: Sequence[str]) -> str:
    """Cells of the table that grows while the race runs: two to the left, numbers to the right."""
    left = "".join(f"{cell:<{width}}" for cell, width in zip(cells[:2], WIDTHS[:2], strict=True))
    return left + "".join(f"{cell:>{width}}" for cell, width in zip(cells[2:], WIDTHS[2:], strict=True))


def heading() -> str:
    return f"{styled(row(HEADINGS), 'bold')}\n{'-' * sum(WIDTHS)}"


def ms(value: float) -> str:
    """Milliseconds with three digits that count."""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def lines(name: str, result: Mapping[str, Any]) -> str:
    """One workload, a line for each server; the one with the most answers is bold."""
    found = result["contestants"]
    fastest = max(found, key=lambda label: found[label]["rate"]["median"])
    shown = []
    for label, one in found.items():
        rate, ratio = one["rate"], result.get("ratios", {}).get(label)
        cells = ["" if shown else name, label, *(f"{rate[key]:,.0f}" for key in ("median", "least", "most"))]
        cells += [ms(one["p50"]["median"]), ms(one["p99"]["median"])]
        cells += [f"{ratio[key]:.2f}" for key in ("median", "least", "most")] if ratio else [""] * 3
        text = row([*cells, f"{one['megabytes']['median']:.0f}"])
        shown.append(styled(text, "bold") if label == fastest and len(found) > 1 else text)
    return "\n".join(shown)


def markdown(found: Mapping[str, Any]) -> str:
    """Tables of all that was measured: answers a second, milliseconds, and one client beside no server at all."""
    labels = list(found["contestants"])
    results = found["workloads"]
    about = found["machine"]
    settings = found["settings"]
    parts = [
        f"{about['processor']}, {about['cores']} cores, {found['date'][:10]}; median of {settings['rounds']} turns of "
        f"{settings['seconds']} s, wrk with one thread on the same machine.",
        table(
            ["answers per second", *labels, *(f"lamella / {label}" for label in labels if label != "lamella")],
            [
                [
                    title(name),
                    *(cell(one, label, lambda it: f"{it['rate']['median']:,.0f}") for label in labels),
                    *(
                        f"{one['ratios'][label]['median']:.1f}" if label in one.get("ratios", {}) else ""
                        for label in labels
                        if label != "lamella"
                    ),
                ]
                for name, one in results.items()
            ],
        ),
        table(
            ["milliseconds, p50 / p99", *labels],
            [
                [
                    title(name),
                    *(
                        cell(one, label, lambda it: f"{ms(it['p50']['median'])} / {ms(it['p99']['median'])}")
                        for label in labels
                    ),
                ]
                for name, one in results.items()
            ],
        ),
        table(
            ["one client, milliseconds: wrk / Python", "no server", *labels],
            [
                [
                    title(name),
                    ms(one["in_process"]["median"]),
                    *(
                        cell(one, label, lambda it: f"{ms(it['p50']['median'])} / {ms(it['python']['median'])}")
                        for label in labels
                    ),
                ]
                for name, one in results.items()
                if "in_process" in one
            ],
        ),
        table(
            ["", *labels],
            [
                [
                    "versions",
                    *(", ".join(" ".join(it) for it in found["contestants"][label].items()) for label in labels),
                ],
                ["most memory, MB", *(f"{most_memory(results, label):.0f}" for label in labels)],
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def title(name: str) -> str:
    """What a workload is: digits-json-16 is digits, JSON, 16 clients."""
    model, form, clients = name.split("-")
    return f"{model}, {'JSON' if form == 'json' else form}, {clients} client{'s' if clients != '1' else ''}"


def cell(result: Mapping[str, Any], label: str, shown: Any) -> str:
    one = result["contestants"].get(label)
    return str(shown(one)) if one else "-"


def most_memory(results: Mapping[str, Any], label: str) -> float:
    seen = [one["contestants"][label]["megabytes"]["most"] for one in results.values() if label in one["contestants"]]
    return max(seen, default=0.0)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def draw(results: Mapping[str, Any], path: Path, subtitle: str) -> None:
    """A chart: a panel for each model and form, in it the answers a second of each server, by the number of clients."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panels = {
        key: list(names) for key, names in itertools.groupby(results, key=lambda name: tuple(name.split("-")[:2]))
    }
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 1.0 + 1.5 * len(panels)), squeeze=False, sharex=True, layout="constrained"
    )
    drawn = {label for one in results.values() for label in one["contestants"]}
    for (model, form), axis in zip(panels, axes[:, 0], strict=True):
        names = panels[model, form]
        for y, name in enumerate(names):
            found = results[name]["contestants"]
            rates = [one["rate"]["median"] for one in found.values()]
            axis.plot([min(rates), max(rates)], [y, y], color="#d8d8d8", linewidth=2, zorder=1, solid_capstyle="round")
            for label, one in found.items():
                colour, marker = STYLES[label]
                own = label == "lamella"
                axis.plot([one["rate"]["least"], one["rate"]["most"]], [y, y], color=colour, linewidth=1.2, alpha=0.6)
                axis.plot(
                    one["rate"]["median"],
                    y,
                    color=colour,
                    marker=marker,
                    markersize=9 if own else 6.5,
                    zorder=4 if own else 3,
                    markeredgecolor="white",
                    markeredgewidth=0.6,
                )
        clients = [name.split("-")[2] for name in names]
        axis.set_yticks(range(len(names)), [f"{count} client{'s' if count != '1' else ''}" for count in clients])
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_title(f"{model}, {'JSON' if form == 'json' else form}", loc="left", fontsize=10)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis="x", color="#eeeeee")
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[-1, 0].set_xlabel("answers per second: median of turns, line from least to most")
    for label, (colour, marker) in STYLES.items():
        if label in drawn:
            axes[0, 0].plot([], [], linestyle="", label=label, color=colour, marker=marker)
    figure.suptitle("Answers to requests of one row", x=0.01, ha="left", fontsize=13, weight="bold")
    figure.text(0.99, 0.005, subtitle, ha="right", va="bottom", fontsize=8, color="#666666")
    figure.legend(loc="outside lower left", ncols=len(drawn), frameon=False, fontsize=9, handletextpad=0.3)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    os.replace(partial, path)


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write JSON, and Markdown beside it, each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for place, text in ((path, json.dumps(found, indent=1) + "\n"), (path.with_suffix(".md"), markdown(found))):
        partial = place.with_name(f".{place.name}")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, place)
