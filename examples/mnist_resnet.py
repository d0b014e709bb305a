"""Read handwritten digits with a residual network: every block adds what it finds to what came in.

python examples/mnist_resnet.py          on 5000 digits of MNIST, in a minute or two; needs lamella[examples]
python examples/mnist_resnet.py --quick  on 300 digits that lamella carries, in seconds: to see that it works

Prints the accuracy on 1000 digits that it has not learned from, and how far onnxruntime is from the engine. Leaves the
model for onnxruntime and a picture in runs/mnist_resnet.
"""

import sys
from pathlib import Path

import onnxruntime
from mnist import load, moved
from pictures import draw_digits

import lamella as lm
import lamella_onnx
from lamella_layers import (
    Activation,
    Add,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    GlobalAveragePooling2D,
    Rescaling,
)


def convolution(x, filters, kernel_size=3, strides=1):
    return BatchNormalization(momentum=0.9)(
        Conv2D(filters, kernel_size, strides=strides, padding="same", use_bias=False)(x)
    )


def block(x, filters, strides):
    """Two convolutions, added to their input; where the shape changes, to a 1x1 convolution of it."""
    y = Activation("relu")(convolution(x, filters, strides=strides))
    y = convolution(y, filters)
    same = strides == 1 and x.shape[1] == filters
    return Activation("relu")(Add()(y, x if same else convolution(x, filters, 1, strides)))


def network(seed=0):
    image = lm.Input((1, 28, 28), name="image")
    x = Activation("relu")(convolution(Rescaling(1 / 255)(image), 16))
    for filters, strides in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        x = block(x, filters, strides)
    return lm.Model(image, Dense(10)(Dropout(0.2)(GlobalAveragePooling2D()(x))), seed=seed)


def main(quick=False, seed=0, folder=Path("runs/mnist_resnet")):
    folder.mkdir(parents=True, exist_ok=True)
    images, labels, test_images, test_labels = load(seed, quick)
    epochs, batch_size = (2, 32) if quick else (10, 64)
    steps = epochs * (len(images) // batch_size)

    model = network(seed)
    model.summary()
    history = model.fit(
        moved(images, labels, batch_size, seed),
        loss="softmax_cross_entropy",
        optimizer=lm.optimizers.AdamW(lm.schedules.Cosine(3e-3, steps=steps, warm_up=steps // 20), weight_decay=0.01),
        epochs=epochs,
        metrics="accuracy",
        validation_data=(test_images, test_labels),  # only looked at: it decides nothing
    )
    accuracy = history["val_accuracy"][-1]
    print(f"\naccuracy on {len(test_labels)} digits of the test: {accuracy:.1%}\n")

    file = folder / "mnist_resnet.onnx"
    print(lamella_onnx.export(model, file, samples=test_images[:100], append=Activation("softmax")))
    print(lamella_onnx.verify(file))
    (probabilities,) = onnxruntime.InferenceSession(file).run(None, {"image": test_images})
    title = f"A residual network reads {accuracy:.1%} of {len(test_labels)} new digits"
    draw_digits(folder / "mnist_resnet.png", title, history, test_images, test_labels, probabilities)
    print(f"\nin {folder}: mnist_resnet.onnx, mnist_resnet.png")
    return history


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
