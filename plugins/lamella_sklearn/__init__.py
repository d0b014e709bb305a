"""Networks as estimators of scikit-learn, and pipelines as proven ONNX files.

>>> from sklearn.datasets import load_wine
>>> from sklearn.pipeline import make_pipeline
>>> from sklearn.preprocessing import StandardScaler
>>> import lamella_sklearn
>>> X, y = load_wine(return_X_y=True)
>>> network = lamella_sklearn.LamellaClassifier(learning_rate=0.01, random_state=0)
>>> pipeline = make_pipeline(StandardScaler(), network).fit(X, y)
>>> lamella_sklearn.to_onnx(pipeline, "wine.onnx", X).agrees
True
"""

from typing import TYPE_CHECKING, Any

from lamella.elsewhere import missing
from lamella.errors import did_you_mean

try:
    from lamella_sklearn.estimators import LamellaClassifier, LamellaRegressor
except ImportError as error:
    if (error.name or "").partition(".")[0] != "sklearn":
        raise
    raise ImportError("lamella_sklearn needs scikit-learn: pip install 'lamella[sklearn]'", name="sklearn") from error

if TYPE_CHECKING:
    from lamella_sklearn.export import to_onnx

__all__ = ["LamellaClassifier", "LamellaRegressor", "to_onnx"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "to_onnx":
            try:
                from lamella_sklearn.export import to_onnx
            except ImportError as error:
                if (error.name or "").partition(".")[0] != "skl2onnx":
                    raise
                raise ImportError("to_onnx needs skl2onnx: pip install 'lamella[sklearn]'", name="skl2onnx") from error
            return to_onnx
        close = did_you_mean(name, __all__)
        raise missing(__name__, name, f"{close and '.'}{close}")


def __dir__() -> list[str]:
    return __all__
