"""The README's first model in JAX, with flax and optax: see __main__.py."""

import jax
import numpy as np
import optax
from digits import images, labels, report
from flax import nnx

images = images.transpose(0, 2, 3, 1)


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.convolution = nnx.Conv(1, 16, (3, 3), padding="VALID", rngs=rngs)
        self.dense = nnx.Linear(144, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.convolution(x)), (2, 2), strides=(2, 2))
        return self.dense(x.reshape(len(x), -1))


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
draw = np.random.default_rng(0)
with report.training():
    for _ in range(8):
        order = draw.permutation(1500)
        for start in range(0, 1500, 32):
            rows = order[start : start + 32]
            step(model, optimizer, images[rows], labels[rows])
    jax.block_until_ready(nnx.state(model))
report(float((model(images[1500:]).argmax(1) == labels[1500:]).mean()))
