"""The README's first model in Keras: see __main__.py."""

import keras
from digits import images, labels, report
from keras.layers import Conv2D, Dense, Flatten, Input, MaxPooling2D

images = images.transpose(0, 2, 3, 1)
layers = [Input((8, 8, 1)), Conv2D(16, 3, activation="relu"), MaxPooling2D(), Flatten(), Dense(10)]
model = keras.Sequential(layers)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer=keras.optimizers.Adam(0.01), loss=loss, metrics=["accuracy"])
with report.training():
    model.fit(images[:1500], labels[:1500], batch_size=32, epochs=8, verbose=0)
report(model.evaluate(images[1500:], labels[1500:], verbose=0)[1])
