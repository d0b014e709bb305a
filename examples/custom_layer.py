"""A layer of one's own: a gate with a learned threshold for every feature, checked, trained, exported and verified.

python examples/custom_layer.py
"""

import tempfile
from pathlib import Path

import lamella as lm
import lamella_onnx
from lamella.datasets import digits
from lamella_layers import Dense, Flatten


class SoftGate(lm.Layer):
    """y = x * sigmoid(sharpness * (x - threshold)), with one learned threshold for each feature.

    Input and output (N, features).
    """

    def __init__(self, sharpness: float = 4.0):
        self.sharpness = sharpness

    def build(self, declare, x):
        declare.parameter("threshold", x.shape[1:], "zeros")
        return x

    def forward_pass(self, ctx, x):
        gate = lm.primitives.sigmoid(ctx, self.sharpness * (x - ctx.params.threshold))
        ctx.save(x, gate)
        return x * gate

    def backward_pass(self, ctx, dy):
        x, gate = ctx.saved
        slope = self.sharpness * x * gate * (1.0 - gate)  # dy/dx through the gate; minus that for the threshold
        ctx.grad(threshold=-ctx.xp.sum(dy * slope, axis=0))
        return dy * (gate + slope)


def main(epochs: int = 10) -> float:
    print(lm.testing.check_layer(SoftGate(), lm.ArraySpec(("N", 6))))

    images, labels = digits()
    images = images / 16.0
    model = lm.Sequential([Flatten(), Dense(64), SoftGate(), Dense(10)], input_shape=(1, 8, 8))
    model.fit(images[300:], labels[300:], loss="softmax_cross_entropy", optimizer="adam", epochs=epochs)
    found = model.evaluate(images[:300], labels[:300], loss="softmax_cross_entropy", metrics=["accuracy"])
    print(f"test accuracy: {found['accuracy']:.1%}")

    with tempfile.TemporaryDirectory() as folder:
        print(lamella_onnx.export(model, Path(folder) / "gate.onnx", samples=images[:50]))
    return found["accuracy"]


if __name__ == "__main__":
    main()
