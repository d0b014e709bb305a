"""Build a page that trains a model in the browser: a folder that any server of files serves.

python examples/browser/build.py          builds into runs/browser
python examples/browser/build.py FOLDER   builds into another folder
python -m http.server -d runs/browser     serves it, at http://localhost:8000

Needs npm, which brings onnxruntime-web in the version that package-lock.json names.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

import lamella as lm
import lamella_onnx
from lamella.datasets import digits
from lamella_layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D, Rescaling

HERE = Path(__file__).resolve().parent
HELD_OUT = 300  # digits that the page tests on
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")  # onnxruntime on CPUs, without WebGPU


def network(seed=0):
    """A small convolutional network of 10,090 parameters that takes ink from 0 to 16."""
    layers = [
        Rescaling(1 / 16),
        Conv2D(16, 3, activation="relu"),
        MaxPooling2D(),
        Flatten(),
        Dense(64, activation="relu"),
        Dropout(0.3),
        Dense(10),
    ]
    return lm.Sequential(layers, input_shape=(1, 8, 8), seed=seed)


def split(seed=0):
    """The shipped digits in random order, a byte for each pixel: those to learn from, and those to test on."""
    images, labels = (array.astype("uint8") for array in digits())
    order = np.random.default_rng(seed).permutation(len(images))
    train, test = order[HELD_OUT:], order[:HELD_OUT]
    return {
        "train.images": images[train],
        "train.labels": labels[train],
        "test.images": images[test],
        "test.labels": labels[test],
    }


def runtime(folder):
    """Let npm bring onnxruntime-web, checked against the lock file, and copy the files that the page loads."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("build.py: npm is missing, which brings onnxruntime-web. Debian, Ubuntu: apt install npm")
    with tempfile.TemporaryDirectory() as place:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, place)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"build.py: npm could not bring onnxruntime-web:\n{done.stderr}")
        folder.mkdir(exist_ok=True)
        for name in RUNTIME:
            shutil.copyfile(Path(place, "node_modules", "onnxruntime-web", "dist", name), folder / name)


def main(folder=Path("runs/browser")):
    folder.mkdir(parents=True, exist_ok=True)
    for file in (HERE / "page").iterdir():
        shutil.copyfile(file, folder / file.name)
    arrays = split()
    samples = (arrays["train.images"].astype("float32"), arrays["train.labels"].astype("int64"))
    report = lamella_onnx.export_training_step(
        network(), folder / "step", loss="softmax_cross_entropy", optimizer=lm.optimizers.SGD(0.2), samples=samples
    )
    (folder / "digits.safetensors").write_bytes(save(arrays))
    runtime(folder / "ort")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"onnxruntime took the same steps as lamella: {len(report.agreements)} arrays compared")
    print(f"{folder}: {size / 1e6:.1f} MB. Serve it: python -m http.server -d {folder}")


if __name__ == "__main__":
    if len(sys.argv) > 2 or any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
