"""The pictures that the examples on real data draw."""

import numpy as np
from matplotlib.figure import Figure


def draw_digits(path, title, history, images, labels, probabilities):
    """Draw the curves of training, which digits are taken for which, and those that are hardest to read."""
    guess = probabilities.argmax(axis=1)
    figure = Figure(figsize=(11, 6.6), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    curve, table = top.subplots(1, 2, width_ratios=(1.5, 1))

    epochs = range(1, history.epochs + 1)
    for name, label, color in (
        ("accuracy", "learning: moved, dropout", "#9aa5b1"),
        ("val_accuracy", "test", "#0b6e99"),
    ):
        curve.plot(epochs, 100 * (1 - np.array(history[name])), color=color, marker="o", ms=3.5, label=label)
    curve.set(yscale="log", xlabel="epoch", yticks=[1, 2, 5, 10, 20, 50], yticklabels=[1, 2, 5, 10, 20, 50])
    curve.minorticks_off()
    curve.xaxis.get_major_locator().set_params(integer=True)
    curve.set_title("misread digits, %", loc="left", fontsize=11)
    curve.grid(alpha=0.3)
    curve.spines[["top", "right"]].set_visible(False)
    curve.legend(frameon=False)

    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, guess), 1)
    wrong = counts * (1 - np.eye(10, dtype=int))
    table.imshow(wrong, cmap="Reds", vmin=0, vmax=max(4, 1.5 * wrong.max()))
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "#b0b8c1" if row == column else "#5c0f0f"
        table.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=color)
    table.set(xticks=range(10), yticks=range(10), xlabel="read as", ylabel="is")
    table.tick_params(length=0)
    table.spines[:].set_color("#d5dbe1")
    table.set_title("which for which", loc="left", fontsize=11)

    hardest = np.lexsort((probabilities.max(axis=1), guess == labels))  # wrong ones first, then the least certain
    bottom.suptitle("the hardest of the test, as onnxruntime reads them", x=0.02, ha="left", fontsize=11)
    for axes, row in zip(bottom.subplots(2, 12).flat, hardest, strict=False):
        axes.imshow(images[row, 0], cmap="gray_r", vmin=0, vmax=255)
        axes.set(xticks=(), yticks=())
        axes.spines[:].set_color("#d5dbe1")
        right = guess[row] == labels[row]
        text = f"{guess[row]}  {probabilities[row].max():.0%}" if right else f"{guess[row]}, not {labels[row]}"
        axes.set_title(text, fontsize=8, color="#333333" if right else "#c0392b", weight="normal" if right else "bold")
    figure.savefig(path, dpi=130)


def draw_forecasts(path, truth, forecasts, errors, margin):
    """Draw the forecasts made at midnight, one day after the other, and the errors by how far ahead they look."""
    day = truth.shape[1]
    figure = Figure(figsize=(11, 6), layout="constrained")
    figure.suptitle(f"the LSTM errs {margin:.0%} less than the seasonal-naive forecast", x=0.01, ha="left", fontsize=13)
    top, bottom = figure.subplots(2, 1, height_ratios=(1.6, 1))
    colors = dict(zip(forecasts, ("#c9a227", "#9aa5b1", "#0b6e99"), strict=True))
    days = np.arange(truth[::day].size) / day
    top.plot(days, truth[::day].ravel() / 1e3, color="#222222", lw=2.2, label="what was needed")
    for name, forecast in forecasts.items():
        if "moved" not in name:
            top.plot(days, forecast[::day].ravel() / 1e3, color=colors[name], lw=1.3, label=name)
    top.set_title("demand in GW, and what was forecast of each day at midnight before", loc="left", fontsize=11)
    top.set(xlim=(0, days[-1]), xticks=range(15), xticklabels=[])
    names = [name for _ in range(2) for name in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")]
    top.set_xticks(np.arange(14) + 0.5, names, minor=True)
    top.tick_params(axis="x", which="minor", length=0)
    top.legend(frameon=False, ncols=3, loc="upper center")
    top.margins(y=0.18)
    for name, error in errors.items():
        bottom.plot(np.arange(1, day + 1) / 2, error, color=colors[name], lw=2, label=name)
    bottom.set_title("mean absolute error in MW", loc="left", fontsize=11)
    bottom.set(xlabel="hours ahead", xticks=range(0, 25, 4), xlim=(0, 24), ylim=(0, None))
    bottom.legend(frameon=False, ncols=3, loc="lower right")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def draw_bits(path, learned, bits, written):
    """Draw what the transformer and the others need, how learning went, and some of the text."""
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    title = f"a small transformer needs {bits['transformer']:.2f} bits for a letter of Python's manual"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    panels = figure.subplot_mosaic([["bars", "page"], ["curve", "page"]], width_ratios=(1, 1.25))
    bars, curve, page = panels["bars"], panels["curve"], panels["page"]
    colors = ["#0b6e99" if name == "transformer" else "#c3ccd4" for name in bits]
    shown = bars.barh([*bits], [*bits.values()], color=colors, height=0.7)
    bars.bar_label(shown, fmt="%.2f", padding=4)
    bars.set(xticks=(), xlim=(0, 1.12 * max(bits.values())))
    bars.invert_yaxis()
    bars.tick_params(length=0)
    bars.spines[:].set_visible(False)
    bars.set_title("bits for each letter of the test", loc="left", fontsize=11)
    curve.plot(range(1, len(learned) + 1), learned, color="#0b6e99", marker="o", ms=3.5)
    curve.set(xlabel="hundreds of steps")
    curve.xaxis.get_major_locator().set_params(integer=True)
    curve.set_title("the same while learning, with dropout", loc="left", fontsize=11)
    curve.grid(alpha=0.3)
    curve.spines[["top", "right"]].set_visible(False)
    style = {"family": "monospace", "fontsize": 7.5, "va": "top", "linespacing": 1.3, "parse_math": False}
    page.text(0.02, 0.98, written, transform=page.transAxes, clip_on=True, **style)
    page.set(xticks=(), yticks=())
    page.spines[:].set_color("#d5dbe1")
    page.set_title("what it writes after “The ”, letter by letter, by onnxruntime", loc="left", fontsize=11)
    figure.savefig(path, dpi=130)
