"""Tell the price of a diamond: a table with words and numbers, from the data frame to one ONNX file.

python examples/diamonds.py          on 53 772 diamonds, in twelve seconds; needs lamella[examples]
python examples/diamonds.py --quick  on a made-up table, in seconds: to see that it works

The pipeline of scikit-learn scales numbers, spreads words out, learns the logarithm of the price with a network, and
goes into one file that takes a diamond as it stands in the table. A fifth of the diamonds, drawn at random, is the
test. Prints the errors there of the file and of boosted trees, and how far onnxruntime is from scikit-learn. Leaves the
file and a picture in runs/diamonds.
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from pictures import draw_prices
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import lamella as lm
import lamella_onnx
from lamella_sklearn import LamellaRegressor, to_onnx

NUMBERS, WORDS = ["carat", "depth", "table"], ["cut", "color", "clarity"]
CLARITY = ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"]  # from the worst to the best


def load(quick=False):
    """Return a table of diamonds, each as often as it differs from others, and their prices in US dollars.

    The table is that of ggplot2; the package plotnine carries it. Both are under the MIT licence.
    """
    if quick:
        draw = np.random.default_rng(0)
        table = pd.DataFrame({"carat": draw.uniform(0.3, 2.5, 2000), "depth": draw.normal(62, 1, 2000), "table": 57.0})
        for name, values in zip(WORDS, (["Fair", "Ideal"], ["D", "G"], CLARITY), strict=True):
            table[name] = draw.choice(values, 2000)
        table["price"] = 4000 * table.carat**1.7 * 1.1 ** table.clarity.map(CLARITY.index)
    else:
        table = pd.read_csv(distribution("plotnine").locate_file("plotnine/data/diamonds.csv"))
        sizes = table[["x", "y", "z"]]  # in mm; some are 0, or ten times as large as they can be
        table = table[(sizes > 0).all(axis=1) & (sizes < 20).all(axis=1)].drop_duplicates()
    return table[NUMBERS + WORDS].astype(dict.fromkeys(NUMBERS, "float32")), table.price.astype("float64")


def pipeline(regressor):
    """Return what takes a table, and learns the logarithm of the price."""
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), NUMBERS), ("words", OneHotEncoder(sparse_output=False), WORDS)]
    )
    return make_pipeline(columns, TransformedTargetRegressor(regressor, func=np.log, inverse_func=np.exp))


def main(quick=False, seed=0, folder=Path("runs/diamonds")):
    folder.mkdir(parents=True, exist_ok=True)
    table, prices = load(quick)
    learn, test, learn_prices, test_prices = train_test_split(table, prices, test_size=0.2, random_state=seed)

    epochs, batch_size = (10, 32) if quick else (40, 256)
    steps = epochs * -(-len(learn) // batch_size)
    network = LamellaRegressor(
        (128, 128),
        loss="mean_absolute_error",
        learning_rate=lm.schedules.Cosine(2e-3, steps=steps, warm_up=steps // 20),
        epochs=epochs,
        batch_size=batch_size,
        random_state=seed,
    )
    model = pipeline(network).fit(learn, learn_prices)

    file = folder / "diamonds.onnx"
    print(to_onnx(model, file, test[:500]))
    print(lamella_onnx.verify(file))
    session = onnxruntime.InferenceSession(file)

    def told(diamonds):  # by onnxruntime, from columns of numbers and of words
        (said,) = session.run(None, {name: diamonds[[name]].to_numpy() for name in NUMBERS + WORDS})
        return said[:, 0]

    trees = pipeline(HistGradientBoostingRegressor(random_state=seed)).fit(learn, learn_prices)
    forecasts = {"the file": told(test), "HistGradientBoostingRegressor": trees.predict(test)}
    print(f"\nprices of {len(test)} diamonds of the test: mean error, and half of the errors are below")
    errors = {name: np.abs(forecast / test_prices - 1) for name, forecast in forecasts.items()}
    for name, error in errors.items():
        print(f"  {name:30} {error.mean():6.1%} {error.median():6.1%}")

    carat = np.linspace(0.3, 2.2, 200, dtype="float32")
    curves = {}
    for clarity in ("IF", "VS2", "SI2"):
        middle = test[["depth", "table"]].median().astype("float32")
        alike = pd.DataFrame({"carat": carat, **middle, "cut": "Ideal", "color": "G", "clarity": clarity})
        curves[clarity] = carat, told(alike.astype(dict.fromkeys(NUMBERS, "float32")))
    title = f"A table in, prices out: half err less than {errors['the file'].median():.0%}"
    draw_prices(folder / "diamonds.png", title, test, test_prices, forecasts["the file"], curves)
    print(f"\nin {folder}: diamonds.onnx, diamonds.png")
    return model[-1].regressor_.model_.history


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
