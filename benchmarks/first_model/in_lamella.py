"""The README's first model in lamella: see __main__.py."""

from digits import images, labels, report

import lamella as lm
from lamella_layers import Conv2D, Dense, Flatten, MaxPooling2D

layers = [Conv2D(16, 3, activation="relu"), MaxPooling2D(), Flatten(), Dense(10)]
model = lm.Sequential(layers, input_shape=(1, 8, 8))
task = {"loss": "softmax_cross_entropy", "metrics": "accuracy"}
with report.training():
    model.fit(
        images[:1500],
        labels[:1500],
        **task,
        optimizer=lm.optimizers.Adam(0.01),
        batch_size=32,
        epochs=8,
        progress=False,
    )
report(model.evaluate(images[1500:], labels[1500:], **task)["accuracy"])
