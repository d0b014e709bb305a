"""The first model of the README in several frameworks: what is installed, how long imports and training take.

    python benchmarks/first_model FOLDER [--rounds 5] [--contestants NAME ...]

Each framework is installed into a folder of its own by ``pip install --target``, unless it is there. A round starts
processes of each for its imports, ten in all rounds, and one that trains; contestants take turns. Times are medians,
and those of imports are less the time of a process that imports NumPy alone. ``PIP_EXTRA_INDEX_URL`` may name the index
of PyTorch's builds for CPUs, which are a fraction of the others' size.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH = os.environ.get("TORCH", "torch==2.13.0")
# requirements, what is imported, the program, the environment
CONTESTANTS = {
    "lamella": ([str(ROOT)], "import lamella, lamella_layers", "in_lamella.py", {}),
    "lamella, scikit-learn": ([f"{ROOT}[sklearn]"], "import lamella_sklearn", None, {}),
    "scikit-learn": (["scikit-learn"], "import sklearn.neural_network", None, {}),
    "PyTorch": ([TORCH, "numpy"], "import torch", "in_torch.py", {}),
    "Keras on PyTorch": (["keras", TORCH], "import keras", "in_keras.py", {"KERAS_BACKEND": "torch"}),
    "Keras on TensorFlow": (["tensorflow-cpu"], "import keras", "in_keras.py", {"KERAS_BACKEND": "tensorflow"}),
    "JAX, flax": (["flax"], "import jax, optax; from flax import nnx", "in_flax.py", {}),
    "JAX, equinox": (["equinox", "optax"], "import jax, optax, equinox", None, {}),
}


def install(folder: Path, requirements: list[str]) -> None:
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "--target", str(folder), *requirements], check=True)


def megabytes(folder: Path) -> float:
    """Of all files but those that Python has compiled, which come with the first import."""
    files = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return sum(file.stat().st_size for file in files) / 1e6


def run(folder: Path, settings: dict[str, str], *arguments: str) -> tuple[float, str]:
    """Start Python with what is in the folder, and return its seconds and what it printed."""
    environment = {"PYTHONPATH": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3", **settings}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KERAS", "LAMELLA"))}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env={**kept, **environment}, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{folder.name}: {done.stderr}")
    return seconds, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    asked = parser.parse_args()
    folders = {name: asked.folder.resolve() / re.sub(r"\W+", "-", name.lower()) for name in asked.contestants}
    for name, folder in folders.items():
        install(folder, CONTESTANTS[name][0])

    imports: dict[str, list[float]] = {name: [] for name in folders}
    whole: dict[str, list[float]] = {name: [] for name in folders}
    told: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
    for number in range(-1, asked.rounds):  # the first round compiles Python's files, and does not count
        for name, folder in folders.items():
            _, code, program, settings = CONTESTANTS[name]
            for _ in range(-(-10 // asked.rounds)):
                empty, _ = run(folder, settings, "-c", "import numpy")
                seconds, _ = run(folder, settings, "-c", f"import numpy; {code}")
                if number >= 0:
                    imports[name].append(seconds - empty)
            if program:
                seconds, printed = run(folder, settings, str(HERE / program))
                if number >= 0:
                    whole[name].append(seconds)
                    told[name].append(json.loads(printed.splitlines()[-1]))

    print(f"{'':22} {'MB':>6} {'packages':>9} {'import s':>9} {'training s':>11} {'whole s':>8} {'accuracy':>9}")
    for name, folder in folders.items():
        packages = len(list(folder.glob("*.dist-info")))
        row = f"{name:22} {megabytes(folder):6.0f} {packages:9} {statistics.median(imports[name]):9.2f}"
        if told[name]:
            training, accuracy = (statistics.median(one[key] for one in told[name]) for key in ("seconds", "accuracy"))
            row += f" {training:11.2f} {statistics.median(whole[name]):8.2f} {accuracy:9.1%}"
        print(row)


if __name__ == "__main__":
    main()
