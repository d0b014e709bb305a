"""The pictures that the examples on real data draw: light on dark, to be read on any page, and on a phone."""

import io
import re

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LightSource, LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

GROUND, LINE, SOFT, INK = "#14171a", "#363c43", "#a9afb7", "#eceae4"
TEAL, AMBER, RED = "#5cc9bf", "#e2b04a", "#ff8a80"
STYLE = {
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "figure.facecolor": GROUND,
    "font.size": 11.5,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def draw(path, title, height, parts, dpi=140, colors=96):
    """Save a figure of some height as a small PNG; ``parts`` is called with it, to draw what is below the title."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6.8, height), layout="constrained", dpi=dpi)
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        figure.suptitle(title, x=0.02, ha="left", fontsize=14, weight="bold")
        parts(figure)
        file = io.BytesIO()
        figure.savefig(file)
    Image.open(file).convert("RGB").quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_digits(path, title, history, images, labels, probabilities):
    """Draw the digits that are hardest to read, the curves of training, and which digits are taken for which."""
    guess = probabilities.argmax(axis=1)
    hardest = np.lexsort((probabilities.max(axis=1), guess == labels))  # wrong ones first, then the least certain
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, guess), 1)
    wrong = counts * (1 - np.eye(10, dtype=int))

    def parts(figure):
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.35, 1))
        top.suptitle("The hardest of the test, as onnxruntime reads them", x=0.02, ha="left", fontsize=12)
        for axes, row in zip(top.subplots(3, 8).flat, hardest, strict=False):
            axes.imshow(images[row, 0], cmap=LinearSegmentedColormap.from_list("ink", [GROUND, INK]), vmin=0, vmax=255)
            axes.set(xticks=(), yticks=())
            axes.spines[:].set(visible=True, color=LINE)
            right = guess[row] == labels[row]
            text = f"{guess[row]}  {probabilities[row].max():.0%}" if right else f"{guess[row]}, not {labels[row]}"
            axes.set_title(text, loc="center", fontsize=10, color=SOFT if right else RED)

        curve, table = bottom.subplots(1, 2, width_ratios=(1.5, 1))
        epochs = range(1, history.epochs + 1)
        for name, label, color in (("accuracy", "learning: moved, dropout", SOFT), ("val_accuracy", "test", TEAL)):
            curve.plot(epochs, 100 * (1 - np.array(history[name])), color=color, marker="o", ms=3.5, label=label)
        curve.set(yscale="log", xlabel="epoch", yticks=[1, 2, 5, 10, 20, 50], yticklabels=[1, 2, 5, 10, 20, 50])
        curve.minorticks_off()
        curve.xaxis.get_major_locator().set_params(integer=True)
        curve.set_title("Misread digits, %")
        curve.legend()

        table.imshow(
            wrong, cmap=LinearSegmentedColormap.from_list("wrong", [GROUND, RED]), vmax=2 * max(2, wrong.max())
        )
        for row, column in zip(*np.nonzero(wrong), strict=True):
            table.text(column, row, wrong[row, column], ha="center", va="center", fontsize=9.5)
        table.set(xticks=range(10), yticks=range(10), xlabel="read as", ylabel="is")
        table.tick_params(labelsize=9.5)
        table.spines[:].set(visible=True)
        table.grid(False)
        table.set_title("Which for which")

    draw(path, title, 6.6, parts)


def draw_forecasts(path, title, truth, forecasts):
    """Draw the forecasts made at midnight, one day after the other, and the errors by how far ahead they look."""
    day = truth.shape[1]
    colors = dict(zip(forecasts, (AMBER, SOFT, TEAL), strict=True))
    names = [name for _ in range(2) for name in ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")]

    def parts(figure):
        top, bottom = figure.subplots(2, 1)
        days = np.arange(truth[::day].size) / day
        top.plot(days, truth[::day].ravel() / 1e3, color=INK, lw=2.4, label="what was needed")
        for name, forecast in forecasts.items():
            if "moved" not in name:
                top.plot(days, forecast[::day].ravel() / 1e3, color=colors[name], lw=1.3, label=name)
        top.set_title("Demand in GW, and what was forecast of each day at midnight before")
        top.set(xlim=(0, days[-1]), xticks=range(15), xticklabels=[])
        top.set_xticks(np.arange(14) + 0.5, names, minor=True)
        top.tick_params(axis="x", which="minor", length=0)
        top.legend(ncols=3, loc="upper center", columnspacing=1.2, handlelength=1.4)
        top.margins(y=0.22)

        hours = np.arange(1, day + 1) / 2
        for name in reversed(forecasts):
            if "moved" not in name:
                error = forecasts[name] - truth
                low, high = np.quantile(error, (0.1, 0.9), axis=0) / 1e3
                bottom.fill_between(hours, low, high, color=colors[name], alpha=0.28, lw=0)
                mean = np.abs(error).mean()
                bottom.plot(hours, high, color=colors[name], lw=1.6, label=f"{name}, mean {mean:.0f} MW")
                bottom.plot(hours, low, color=colors[name], lw=1.6)
        bottom.axhline(0, color=SOFT, lw=0.8)
        bottom.set_title("Errors in GW: eight of ten are within the band")
        bottom.set(xlabel="hours ahead", xticks=range(0, 25, 4), xlim=(0.5, 24))
        bottom.legend(ncols=2, loc="upper center", columnspacing=1.2, handlelength=1.4)
        bottom.margins(y=0.2)

    draw(path, title, 6.4, parts)


def draw_bits(path, title, bits, text, costs, written):
    """Draw a passage of the test with what each of its letters costs, what all methods need, and text of the model."""
    fire = LinearSegmentedColormap.from_list("fire", ["#1d2a30", "#235b63", "#b9843c", RED])
    columns, rows = 56, 11

    def parts(figure):
        passage, rest = figure.subfigures(2, 1, height_ratios=(1.15, 2))
        page = passage.subplots()
        row = column = 0
        for place in range(text.find("\n\n") + 2, len(text)):
            letter, cost = text[place], costs[place]
            word = len(re.match(r"\S*", text[place : place + columns])[0])
            if column + word > columns and text[place - 1].isspace():
                row, column = row + 1, 0
            if row == rows:
                break
            page.fill_between([column, column + 1], -row, -row - 1, color=fire(min(cost / 8, 1)), lw=0)
            if not letter.isspace():
                style = {"family": "monospace", "fontsize": 10, "ha": "center", "va": "center", "parse_math": False}
                page.text(column + 0.5, -row - 0.54, letter, **style)
            row, column = (row + 1, 0) if letter == "\n" else (row, column + 1)
        page.set(xlim=(0, columns), ylim=(-rows, 0), xticks=(), yticks=())
        page.set_title("What is new to it, letter by letter: expected dark, a surprise red")

        upper, lower = rest.subfigures(2, 1, height_ratios=(1, 1.1))
        bars, said = upper.subplots(), lower.subplots()
        shown = bars.barh([*bits], [*bits.values()], color=[TEAL if name == "transformer" else LINE for name in bits])
        bars.bar_label(shown, fmt="%.2f", padding=4)
        bars.set(xticks=(), xlim=(0, 1.12 * max(bits.values())))
        bars.invert_yaxis()
        bars.set_title("Bits for each letter of the test")

        lines = "\n".join(written.splitlines()[:11])
        said.text(0, 1, lines, va="top", fontsize=8.8, family="monospace", linespacing=1.35, parse_math=False)
        said.set(xticks=(), yticks=())
        said.set_title("What it writes after “The ”, by onnxruntime")
        for axes in (page, bars, said):
            axes.spines[:].set_visible(False)
            axes.grid(False)

    draw(path, title, 8, parts)


def draw_prices(path, title, table, prices, forecast, curves):
    """Draw the prices of the test and those that the file gives, and how the price goes up with weight and clarity."""

    def parts(figure):
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
        left.scatter(prices, forecast, s=2, color=TEAL, alpha=0.18, lw=0)
        ends = [prices.min(), prices.max()]
        left.plot(ends, ends, color=INK, lw=1)
        left.set(xscale="log", yscale="log", xlabel="sold for, $", ylabel="by the file, $")
        left.set_title("Diamonds that it has not seen")
        left.set_xticks(ticks := [500, 2000, 10000], ticks)
        left.set_yticks(ticks, ticks)

        for (clarity, (weights, told)), color in zip(curves.items(), (AMBER, TEAL, INK), strict=True):
            alike = (table[["cut", "color", "clarity"]] == ["Ideal", "G", clarity]).all(axis=1)
            right.scatter(table.carat[alike], prices[alike] / 1e3, s=14, color=color, alpha=0.5, lw=0)
            right.plot(weights, told / 1e3, color=color, lw=2.4, label=clarity)
        right.set(xlabel="carat", ylabel="thousands of $", xlim=(0.2, 2.6), ylim=(0, 19))
        right.legend(title="clarity", loc="upper left")
        right.set_title("Cut “Ideal”, colour “G”")
        for axes in (left, right):
            axes.minorticks_off()

    draw(path, title, 4.4, parts)


def draw_terrain(path, title, heights, learned, losses):
    """Draw the heights, lit from the north-west, what networks made of a part of them, and how learning went."""
    land = LinearSegmentedColormap.from_list("land", ["#1b4a4a", "#2f7468", "#7f9a63", "#cdb574", "#f3ead2"])
    light = LightSource(azdeg=315, altdeg=40)
    ends = {"vmin": heights.min(), "vmax": heights.max()}

    def parts(figure):
        panels = figure.subplots(2, 2).flat
        for axes, (name, surface) in zip(panels, {"The map": heights, **learned}.items(), strict=False):
            axes.imshow(light.shade(surface, land, blend_mode="soft", dx=70, dy=93, vert_exag=3, **ends))
            axes.set(xticks=(), yticks=())
            axes.set_title(name)
            axes.grid(False)
            axes.spines[:].set_visible(False)
        curve = panels[3]
        for (name, values), color in zip(losses.items(), (AMBER, TEAL), strict=True):
            curve.plot(range(1, len(values) + 1), values, color=color, lw=2, label=name)
        curve.set(yscale="log", xlabel="epoch")
        curve.set_title("Loss while learning")
        curve.legend()

    draw(path, title, 6.4, parts, dpi=112, colors=40)
