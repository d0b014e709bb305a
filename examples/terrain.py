"""Learn a map by heart with a layer of one's own: with a sine in place of relu, a network learns the fine shapes too.

python examples/terrain.py          on 138 632 heights around the Jacksboro fault, in ten seconds; needs matplotlib
python examples/terrain.py --quick  on every fourth of them in both directions, in seconds: to see that it works

The network takes a place and says how high it is. It learns from a quarter of the places, drawn at random, and is
tested on the others. Prints the mean absolute error there of sine and of relu, and of planes between the heights that
they learned from; and how far onnxruntime is from the engine. Leaves the model for onnxruntime and a picture in
runs/terrain.

The heights are from the Shuttle Radar Topography Mission of NASA, in the public domain, and come with matplotlib.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from matplotlib.cbook import get_sample_data
from matplotlib.tri import LinearTriInterpolator, Triangulation
from pictures import draw_terrain

import lamella as lm
import lamella_onnx
from lamella_layers import Activation, Dense


class Sine(lm.Layer):
    """y = sin(frequency x), after Sitzmann et al. (2020), https://arxiv.org/abs/2006.09661."""

    def __init__(self, frequency: float = 1.0):
        self.frequency = frequency

    def build(self, declare, x):
        return x  # the output has the input's shape and dtype

    def forward_pass(self, ctx, x):
        ctx.save(x)
        return ctx.xp.sin(self.frequency * x)

    def backward_pass(self, ctx, dy):
        (x,) = ctx.saved
        return dy * self.frequency * ctx.xp.cos(self.frequency * x)


def network(first, second, third, seed=0):
    """Three layers of 128 units with these activations; the first one decides how fine the shapes are."""
    layers = []
    for activation in (first, second, third):
        layers += [Dense(128, kernel_initializer="he_uniform"), activation]
    return lm.Sequential([*layers, Dense(1)], input_shape=2, seed=seed)


def load(quick=False):
    """Return heights in metres (rows, columns), and the place of each (rows * columns, 2) between -1 and 1."""
    with np.load(get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)) as file:
        heights = file["elevation"].astype("float32")
    heights = heights[::4, ::4] if quick else heights
    y, x = np.meshgrid(*(np.linspace(-1, 1, size, dtype="float32") for size in heights.shape), indexing="ij")
    return heights, np.stack([x, y], axis=2).reshape(-1, 2)


def main(quick=False, seed=0, folder=Path("runs/terrain")):
    folder.mkdir(parents=True, exist_ok=True)
    print(lm.testing.check_layer(Sine(25.0), lm.ArraySpec(("N", 6))))

    heights, places = load(quick)
    values = heights.reshape(-1, 1)
    order = np.random.default_rng(seed).permutation(len(values))
    learn, test = order[: len(order) // 4], order[len(order) // 4 :]
    mean, deviation = values[learn].mean(), values[learn].std()
    epochs, batch_size = (30, 128) if quick else (60, 1024)
    steps = epochs * -(-len(learn) // batch_size)

    planes = LinearTriInterpolator(Triangulation(*places[learn].T), values[learn, 0])(*places.T)
    learned, losses = {"planes between the known heights": planes.reshape(heights.shape)}, {}
    for name, activations in {
        "relu": (Activation("relu"), Activation("relu"), Activation("relu")),
        "sine": (Sine(6.0 if quick else 25.0), Sine(), Sine()),
    }.items():
        model = network(*activations, seed=seed)
        history = model.fit(
            places[learn],
            (values[learn] - mean) / deviation,
            loss="mean_squared_error",
            optimizer=lm.optimizers.Adam(lm.schedules.Cosine(2e-3, steps=steps, warm_up=steps // 20)),
            epochs=epochs,
            batch_size=batch_size,
        )
        losses[name] = history["loss"]
        learned[name] = (mean + deviation * model.predict(places)).reshape(heights.shape)

    file = folder / "terrain.onnx"
    print(lamella_onnx.export(model, file, samples=places[test[:100]]))
    print(lamella_onnx.verify(file))
    (said,) = onnxruntime.InferenceSession(file).run(None, {"input_1": places})
    learned["sine"] = (mean + deviation * said).reshape(heights.shape)

    errors = {name: np.ma.mean(np.abs(surface - heights).ravel()[test]) for name, surface in learned.items()}
    print(f"\nmean absolute error at {len(test)} places it has not learned from, of heights from {values.min():.0f} to")
    print(f"{values.max():.0f} m, by {sum(array.size for array in model.parameters.values())} numbers:")
    for name, error in errors.items():
        print(f"  {name:34} {error:5.1f} m")
    title = f"A map in a network: it errs {errors['sine']:.0f} m, with relu {errors['relu']:.0f}"
    shown = {"With relu": learned["relu"], "With a sine": learned["sine"]}
    draw_terrain(folder / "terrain.png", title, heights, shown, losses)
    print(f"\nin {folder}: terrain.onnx, terrain.png")
    return history


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
