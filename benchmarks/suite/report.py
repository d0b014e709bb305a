"""What the suite shows: a table while it runs, one that sums it up, a chart, and a file."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamella.terminal import Column, Table, styled

WIDTHS = (18, 24, 9, 9, 9, 8, 7, 7, 9, 9)
HEADINGS = ("workload", "contestant", "ms/step", "least", "most", "ratio", "least", "most", "peak MB", "first s")

OURS = ("#d1495b", "#edae49", "#8d3b72", "#f2a7b0")  # colours in the chart
PEERS = {
    "PyTorch": ("#30638e", "o"),
    "PyTorch channels last": ("#6baed6", "D"),
    "torch.compile": ("#12304a", "s"),
    "JAX": ("#5aa469", "v"),
}


def row(cells: Sequence[str]) -> str:
    """Cells of the table that grows while the suite runs: two to the left, numbers to the right."""
    left = "".join(f"{cell:<{width}}" for cell, width in zip(cells[:2], WIDTHS[:2], strict=True))
    return left + "".join(f"{cell:>{width}}" for cell, width in zip(cells[2:], WIDTHS[2:], strict=True))


def heading() -> str:
    return f"{styled(row(HEADINGS), 'bold')}\n{'-' * sum(WIDTHS)}"


def ms(value: float) -> str:
    """Milliseconds with three digits that count."""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def lines(name: str, result: Mapping[str, Any]) -> str:
    """One workload, a line for each contestant; the fastest is bold."""
    found = result["contestants"]
    fastest = min(found, key=lambda label: found[label]["median"])
    shown = []
    for label, one in found.items():
        ratio = result["ratios"].get(label)
        cells = [name if not shown else "", label, ms(one["median"]), ms(one["least"]), ms(one["most"])]
        cells += [f"{ratio[key]:.2f}" for key in ("median", "least", "most")] if ratio else ["", "", ""]
        cells += [f"{one['peak_megabytes']:.1f}", f"{one['first_step_seconds']:.2f}"]
        text = row(cells)
        shown.append(styled(text, "bold") if label == fastest and len(found) > 1 else text)
    return "\n".join(shown)


def means(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The geometric mean of each lamella's ratios, of training and of inference."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results.values():
        for label, ratio in result["ratios"].items():
            kind = "training" if result["training"] else "inference"
            found.setdefault(label, {}).setdefault(kind, []).append(ratio["median"])
    return {
        label: {kind: statistics.geometric_mean(ratios) for kind, ratios in kinds.items()}
        for label, kinds in found.items()
    }


def summary(results: Mapping[str, Any], contestants: Mapping[str, Any]) -> list[Table]:
    """A line for each workload, and one for each contestant."""
    labels = [label for label in contestants if any(label in one["contestants"] for one in results.values())]
    own = [label for label in labels if any(label in one["ratios"] for one in results.values())]
    columns = ["workload", *(Column(label, right=True) for label in labels)]
    columns += [Column("ratio" if len(own) == 1 else f"ratio, {label}", right=True) for label in own]
    times = Table(columns, title="Milliseconds per step")
    for name, result in results.items():
        found = result["contestants"]
        cells = [ms(found[label]["median"]) if label in found else "" for label in labels]
        fastest = min(found, key=lambda label: found[label]["median"])
        cells = [styled(cell, "bold") if label == fastest else cell for label, cell in zip(labels, cells, strict=True)]
        ratios = [result["ratios"].get(label) for label in own]
        times.add(name, *cells, *(f"{one['median']:.2f}" if one else "" for one in ratios))
    found_means = means(results)
    for kind in ("training", "inference"):
        values = [found_means.get(label, {}).get(kind) for label in own]
        if any(values):
            cells = [f"{value:.2f}" if value else "" for value in values]
            times.add(f"mean of {kind}", *[""] * len(labels), *cells)
    if own:
        times.notes.append("ratio: time of the fastest peer / time of lamella; above 1 lamella is faster.")
        times.notes.append("It is the median of rounds, each with its own fastest peer. Means are geometric.")
    about = Table(
        [
            "contestant",
            "version",
            "kernels",
            *(Column(text, right=True) for text in ("threads", "import s", "installed MB")),
        ]
    )
    for label in labels:
        one = contestants[label]
        imports = [found["contestants"][label] for found in results.values() if label in found["contestants"]]
        seconds = statistics.median(found["import_seconds"] for found in imports)
        size = f"{one['installed_megabytes']:.0f}"
        about.add(label, one["version"], one["kernels"], str(one["threads"]), f"{seconds:.2f}", size)
    return [times, about]


def draw(results: Mapping[str, Any], labels: Sequence[str], path: Path, subtitle: str) -> None:
    """A chart: times of all contestants on the left, how many times as fast lamella is on the right."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    names = sorted(results, key=lambda name: not results[name]["training"])
    count = sum(one["training"] for one in results.values())
    places = {name: k + 0.8 * (0 < count <= k) for k, name in enumerate(names)}  # a gap before inference
    own = [label for label in labels if any(label in one["ratios"] for one in results.values())]
    ours = [label for label in labels if label.startswith("lamella")]
    styles: dict[str, dict[str, Any]] = {
        label: {"color": OURS[k % len(OURS)], "marker": "o", "markersize": 8.5, "zorder": 4}
        for k, label in enumerate(ours)
    }
    for label in labels:
        if label not in ours:
            colour, marker = PEERS[label]
            styles[label] = {"color": colour, "marker": marker, "markersize": 6, "zorder": 3}

    figure, axes = plt.subplots(
        1,
        2 if own else 1,
        figsize=(11 if own else 8, 1.6 + 0.34 * (len(names) + 1)),
        sharey=True,
        squeeze=False,
        width_ratios=[3, 2] if own else [1],
        layout="constrained",
    )
    times = axes[0][0]
    for name, y in places.items():
        found = results[name]["contestants"]
        medians = [one["median"] for one in found.values()]
        times.plot([min(medians), max(medians)], [y, y], color="#d8d8d8", linewidth=2, zorder=1, solid_capstyle="round")
        for label, one in found.items():
            style = styles[label]
            line = {"color": style["color"], "zorder": style["zorder"]}
            times.plot([one["least"], one["most"]], [y, y], linewidth=1.2, alpha=0.6, **line)
            times.plot(one["median"], y, markeredgecolor="white", markeredgewidth=0.6, **style)
    for label, style in styles.items():
        times.plot([], [], linestyle="", label=label, **style)
    times.set_xscale("log")
    times.set_xlabel("milliseconds per step: median of rounds, line from least to most")
    times.set_yticks(list(places.values()), list(places))
    times.set_ylim(max(places.values()) + 0.7, -0.7)
    drawn = [times]
    if own:
        ratios = axes[0][1]
        drawn.append(ratios)
        height = 0.7 / len(own)
        for k, label in enumerate(own):
            for name, y in places.items():
                if label not in results[name]["ratios"]:
                    continue
                one = results[name]["ratios"][label]
                at = y + (k - (len(own) - 1) / 2) * height
                bar = {
                    "height": height * 0.9,
                    "color": styles[label]["color"],
                    "alpha": 1.0 if one["median"] >= 1 else 0.45,
                }
                ratios.barh(at, one["median"] - 1, left=1, **bar)
                ratios.plot([one["least"], one["most"]], [at, at], color="#333333", linewidth=1)
                beyond = one["most"] if one["median"] >= 1 else one["least"]
                side = {"ha": "left", "xytext": (4, 0)} if one["median"] >= 1 else {"ha": "right", "xytext": (-4, 0)}
                text = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": "#333333"}
                ratios.annotate(f"{one['median']:.2f}", (beyond, at), **side, **text)
        ratios.axvline(1, color="#333333", linewidth=1)
        ratios.set_xscale("log")
        ratios.margins(x=0.18)
        ratios.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ratios.set_xlabel("fastest peer / lamella: right of 1, lamella is faster")
    for one in drawn:
        one.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        one.xaxis.set_minor_formatter(NullFormatter())
        one.grid(axis="x", color="#eeeeee")
        one.set_axisbelow(True)
        one.tick_params(axis="y", length=0)
        one.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle("Time of a step", x=0.01, ha="left", fontsize=13, weight="bold")
    figure.text(0.99, 0.985, subtitle, ha="right", va="top", fontsize=8, color="#666666")
    figure.legend(loc="outside lower right", ncols=len(labels), frameon=False, fontsize=9, handletextpad=0.3)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    os.replace(partial, path)


def write(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
