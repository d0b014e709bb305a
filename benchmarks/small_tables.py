"""How long `fit` takes on small tables: LamellaClassifier beside scikit-learn's MLPClassifier, on one thread.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/small_tables.py

Both train the same network, 100 hidden units, on equal rows with Adam and batches of 32, for equally many epochs. Each
has a process of its own in every round, and the order turns round from one round to the next; times are the least of
some fits in a process, the ratio is the median of rounds. Below 1, lamella is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any

EPOCHS, FITS = 30, 5
TABLES = ("wine", "breast_cancer", "digits")
CONTESTANTS = ("LamellaClassifier", "MLPClassifier")
REMOVED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def estimator(name: str) -> Any:
    """What is timed: settings are equal, and none stops early."""
    settings = {"batch_size": 32, "n_iter_no_change": EPOCHS, "random_state": 0}
    if name == "MLPClassifier":
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier((100,), max_iter=EPOCHS, alpha=0.0, **settings)
    import lamella as lm
    from lamella_sklearn import LamellaClassifier

    lm.set_threads(1)
    return LamellaClassifier((100,), epochs=EPOCHS, **settings)


def measure(name: str, dtype: str) -> dict[str, tuple[float, float]]:
    """Seconds of a fit, and the share of rows that are right then, for each table."""
    import sklearn.datasets
    from sklearn.preprocessing import scale

    warnings.simplefilter("ignore")  # that it has not converged
    found = {}
    for table in TABLES:
        X, y = getattr(sklearn.datasets, f"load_{table}")(return_X_y=True)
        X, model, times = scale(X).astype(dtype), estimator(name), []
        for _ in range(FITS):
            began = time.perf_counter()
            model.fit(X, y)
            times.append(time.perf_counter() - began)
        found[table] = min(times), model.score(X, y)
    return found


def main() -> None:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="how often both are measured (10)")
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"), help="of the rows (float64)")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)  # be one of the processes
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(measure(asked.only, asked.dtype)))
        return
    kept = {name: value for name, value in os.environ.items() if name not in REMOVED} | ONE_THREAD
    rounds: list[dict[str, Any]] = []
    for number in range(asked.rounds):
        found = {}
        for name in CONTESTANTS[:: -1 if number % 2 else 1]:
            command = [sys.executable, __file__, "--only", name, "--dtype", asked.dtype]
            done = subprocess.run(command, env=kept, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout)
        rounds.append(found)
    print(f"{'milliseconds of fit':<22}{'lamella':>9}{'MLP':>9}{'ratio':>7}   right, of both")
    for table in TABLES:
        own, other = ([one[name][table][0] for one in rounds] for name in CONTESTANTS)
        ratio = statistics.median(a / b for a, b in zip(own, other, strict=True))
        right = "  ".join(f"{rounds[0][name][table][1]:.3f}" for name in CONTESTANTS)
        times = "".join(f"{1e3 * statistics.median(some):9.1f}" for some in (own, other))
        print(f"{table:<22}{times}{ratio:7.2f}   {right}")


if __name__ == "__main__":
    main()
