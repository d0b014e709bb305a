"""Forecast the electricity that England and Wales need in the next 24 hours, every half-hour anew, with an LSTM.

python examples/electricity_lstm.py          on twelve weeks of the year 2000, in half a minute; needs lamella[examples]
python examples/electricity_lstm.py --quick  on a made-up series, in seconds: to see that it works

The last two weeks are the test: nothing is learned or scaled from them. Prints the mean absolute error there of the
LSTM, of the seasonal-naive forecast (as a week before), and of that moved to the level of the last day; and how far
onnxruntime is from the engine. Leaves the model for onnxruntime and a picture in runs/electricity_lstm.
"""

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnxruntime
from pictures import draw_forecasts

import lamella as lm
import lamella_onnx
from lamella_layers import LSTM, Dense, Dropout

DAY, WEEK = 48, 336  # half-hours
TEST = 2 * WEEK


def load(quick=False):
    """Return demand in megawatts for each half-hour: 4032 of them, from Monday, 5 June 2000 (J. W. Taylor, 2003)."""
    if quick:
        hours, noise = np.arange(6 * WEEK), 200 * np.random.default_rng(0).normal(size=6 * WEEK)
        swing = np.cos(2 * np.pi * hours / DAY) * (4e3 + hours)  # grows from week to week
        return 3e4 - 3e3 * (hours % WEEK >= 5 * DAY) - swing + noise
    source = distribution("pmdarima").locate_file("pmdarima/datasets/taylor.py").read_text()  # one long list
    return np.array(re.findall(r"\d+", source[source.index("np.array([") :]), dtype="float64")


def windows(demand, starts, mean, deviation):
    """For forecasts that start at these half-hours, return what the LSTM sees, what it should say, and two forecasts.

    It sees two days: demand, and by how much it was above the week before, less the mean of that over the last day. It
    says by how much demand will be above the forecast that adds this mean to the demand of the week before.
    """
    above = np.concatenate([np.zeros(WEEK), demand[WEEK:] - demand[:-WEEK]])
    past, future = starts[:, None] + np.arange(-2 * DAY, 0), starts[:, None] + np.arange(DAY)
    level = above[past[:, -DAY:]].mean(axis=1, keepdims=True)
    naive = demand[future - WEEK]
    seen = np.stack([demand[past] - mean, above[past] - level], axis=2) / deviation
    said = (demand[future] - naive - level) / deviation
    return seen.astype("float32"), said.astype("float32"), naive, naive + level


def main(quick=False, seed=0, folder=Path("runs/electricity_lstm")):
    folder.mkdir(parents=True, exist_ok=True)
    demand = load(quick)
    cut = len(demand) - TEST
    scale = demand[:cut].mean(), demand[:cut].std()
    x, y, _, _ = windows(demand, np.arange(2 * WEEK, cut - DAY + 1, 4 if quick else 1), *scale)
    starts = np.arange(cut, len(demand) - DAY + 1)
    test_x, _, naive, moved = windows(demand, starts, *scale)
    truth = demand[starts[:, None] + np.arange(DAY)]

    layers = [LSTM(32, return_sequences=False), Dropout(0.2), Dense(DAY, kernel_initializer="zeros")]
    model = lm.Sequential(layers, input_shape=("T", 2), seed=seed)
    model.summary()
    epochs, batch_size = (4, 16) if quick else (8, 64)
    steps = epochs * -(-len(x) // batch_size)
    history = model.fit(
        x,
        y,
        loss="mean_absolute_error",
        optimizer=lm.optimizers.AdamW(lm.schedules.Cosine(3e-3, steps=steps, warm_up=steps // 20), weight_decay=0.1),
        epochs=epochs,
        batch_size=batch_size,
        clip_norm=1.0,
    )

    file = folder / "electricity_lstm.onnx"
    print(lamella_onnx.export(model, file, samples=test_x[:50]))
    print(lamella_onnx.verify(file))
    (said,) = onnxruntime.InferenceSession(file).run(None, {"input_1": test_x})
    forecasts = {"as a week before": naive, "moved to the last day's level": moved, "LSTM": moved + said * scale[1]}
    errors = {name: np.abs(forecast - truth).mean() for name, forecast in forecasts.items()}
    print(f"\nmean absolute error over the next 24 hours, {len(starts)} forecasts in the last two weeks:")
    for name, error in errors.items():
        print(f"  {name:30} {error:6.0f} MW")
    margin = 1 - errors["LSTM"] / errors["as a week before"]
    print(f"the LSTM errs {margin:.0%} less than the seasonal-naive forecast")
    title = f"An LSTM errs {margin:.0%} less than the week before"
    draw_forecasts(folder / "electricity_lstm.png", title, truth, forecasts)
    print(f"\nin {folder}: electricity_lstm.onnx, electricity_lstm.png")
    return history


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
