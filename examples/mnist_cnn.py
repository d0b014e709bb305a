"""Read handwritten digits with a convolutional network built by the usual rules, and check its ONNX file.

python examples/mnist_cnn.py          on 5000 digits of MNIST, in a minute or two; needs lamella[examples]
python examples/mnist_cnn.py --quick  on 300 digits that lamella carries, in seconds: to see that it works

Prints the accuracy on 1000 digits that it has not learned from, and how far onnxruntime is from the engine. Leaves in
runs/mnist_cnn: the model for onnxruntime, a picture, and a batch of images for serve.py.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from mnist import load, moved
from pictures import draw_digits

import lamella as lm
import lamella_onnx
from lamella_layers import Activation, BatchNormalization, Conv2D, Dense, Dropout, Flatten, Rescaling, SpatialDropout2D


def network(seed=0):
    """Small filters stacked deep; 'same' padding; stride in place of pooling; normalize between convolution and
    activation; drop whole channels after convolutions, and half of the numbers in dense layers."""
    layers = [Rescaling(1 / 255)]
    for filters, strides in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers += [
            Conv2D(filters, 3, strides=strides, padding="same", use_bias=False),  # the next layer has its bias
            BatchNormalization(momentum=0.9),
            Activation("relu"),
        ]
        if strides == 2:
            layers.append(SpatialDropout2D(0.05))
    layers += [
        Flatten(),
        Dense(128, use_bias=False),
        BatchNormalization(momentum=0.9),
        Activation("relu"),
        Dropout(0.5),
    ]
    return lm.Sequential([*layers, Dense(10)], input_shape=(1, 28, 28), seed=seed)


def main(quick=False, seed=0, folder=Path("runs/mnist_cnn")):
    folder.mkdir(parents=True, exist_ok=True)
    images, labels, test_images, test_labels = load(seed, quick)
    epochs, batch_size = (2, 32) if quick else (20, 64)
    steps = epochs * (len(images) // batch_size)

    model = network(seed)
    model.summary()
    history = model.fit(
        moved(images, labels, batch_size, seed),
        loss="softmax_cross_entropy",
        optimizer=lm.optimizers.AdamW(lm.schedules.Cosine(4e-3, steps=steps, warm_up=steps // 20), weight_decay=0.01),
        epochs=epochs,
        metrics="accuracy",
        validation_data=(test_images, test_labels),  # only looked at: it decides nothing
    )
    accuracy = history["val_accuracy"][-1]
    print(f"\naccuracy on {len(test_labels)} digits of the test: {accuracy:.1%}\n")

    file = folder / "mnist_cnn.onnx"
    print(lamella_onnx.export(model, file, samples=test_images[:100], append=Activation("softmax")))
    print(lamella_onnx.verify(file))
    session = onnxruntime.InferenceSession(file)
    (probabilities,) = session.run(None, {"input_1": test_images})
    title = f"A small network reads {accuracy:.1%} of {len(test_labels)} new digits"
    draw_digits(folder / "mnist_cnn.png", title, history, test_images, test_labels, probabilities)
    np.save(folder / "images.npy", test_images[:: len(test_images) // 10])  # one of each digit
    print(f"\nin {folder}: mnist_cnn.onnx, mnist_cnn.png, images.npy")
    return history


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
