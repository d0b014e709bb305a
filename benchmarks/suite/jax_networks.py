"""The networks in JAX, written by hand in the forms that XLA runs fastest on CPUs.

Images are channels last. Pooling is a maximum of strided slices, and a depthwise convolution a sum of shifted products:
XLA's own windows take many times as long on CPUs, most of all in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import workloads as w
from jax import lax


class Pass:
    """One pass through a network: takes parameters and running statistics in turn, and collects the new statistics."""

    def __init__(self, params: Iterable[Any], state: Iterable[Any], training: bool):
        self.params, self.state, self.training = iter(params), iter(state), training
        self.new_state: list[Any] = []

    def take(self, count: int) -> list[Any]:
        return [next(self.params) for _ in range(count)]

    def dense(self, x: Any) -> Any:
        kernel, bias = self.take(2)
        return x @ kernel + bias

    def conv(self, x: Any, stride: int = 1) -> Any:
        (kernel,) = self.take(1)
        pad = kernel.shape[0] // 2
        numbers = ("NHWC", "HWIO", "NHWC")
        padding = ((pad, pad), (pad, pad))
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)

    def depthwise(self, x: Any, stride: int = 1) -> Any:
        (kernel,) = self.take(1)
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        places = [(i, j) for i in range(3) for j in range(3)]
        return sum(padded[:, i : i + height : stride, j : j + width : stride] * kernel[i, j, 0] for i, j in places)

    def batch_norm(self, x: Any) -> Any:
        gamma, beta = self.take(2)
        mean, variance = next(self.state), next(self.state)
        if self.training:
            running = mean, variance
            mean = x.mean((0, 1, 2))
            variance = (x * x).mean((0, 1, 2)) - mean * mean
            for old, new in zip(running, (mean, variance), strict=True):
                self.new_state.append(w.MOMENTUM * old + (1 - w.MOMENTUM) * new)
        scale = gamma * lax.rsqrt(variance + w.EPSILON)
        return x * scale + (beta - mean * scale)

    def layer_norm(self, x: Any) -> Any:
        gamma, beta = self.take(2)
        mean = x.mean(-1, keepdims=True)
        centered = x - mean
        return centered * lax.rsqrt((centered * centered).mean(-1, keepdims=True) + w.EPSILON) * gamma + beta

    def max_pool(self, x: Any) -> Any:
        rows = jnp.maximum(x[:, ::2], x[:, 1::2])
        return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])

    def attention(self, x: Any) -> Any:
        n, time, width = x.shape
        query, value, key = (self.dense(x).reshape(n, time, w.HEADS, width // w.HEADS) for _ in range(3))
        scores = jnp.einsum("nthk,nshk->nhts", query, key) * (width // w.HEADS) ** -0.5
        mixed = jnp.einsum("nhts,nshk->nthk", jax.nn.softmax(scores), value)
        return self.dense(mixed.reshape(n, time, width))

    def recurrent(self, x: Any, gates: int, step: Callable[..., Any], states: int = 1) -> Any:
        """The last h; ``step(states, z, recurrent kernel, rest of the parameters)`` gives the next states."""
        kernel, recurrent_kernel, bias = self.take(3)
        rest = self.take(1) if gates == 3 else []
        z = x.swapaxes(0, 1) @ kernel + bias  # (time, N, gates * units): all steps in one product
        start = (jnp.zeros((x.shape[0], w.UNITS), x.dtype),) * states
        last, _ = lax.scan(lambda states, z: (step(states, z, recurrent_kernel, *rest), None), start, z)
        return last[0]


def mlp(p: Pass, x: Any) -> Any:
    for _ in w.MLP[1:-1]:
        x = jax.nn.relu(p.dense(x))
    return p.dense(x)


def head(p: Pass, x: Any) -> Any:
    return p.dense(jax.nn.relu(p.dense(x.reshape(x.shape[0], -1))))


def cnn(p: Pass, x: Any) -> Any:
    for _ in w.CNN:
        x = p.conv(x)
        x = p.max_pool(jax.nn.relu(x + p.take(1)[0]))
    return head(p, x)


def vgg(p: Pass, x: Any) -> Any:
    for _ in w.VGG:
        for _ in range(2):
            x = jax.nn.relu(p.batch_norm(p.conv(x)))
        x = p.max_pool(x)
    return head(p, x)


def resnet(p: Pass, x: Any) -> Any:
    x = jax.nn.relu(p.batch_norm(p.conv(x)))
    for stage, _ in enumerate(w.RESNET):
        for block in range(w.RESNET_BLOCKS):
            widens = stage > 0 and block == 0
            y = jax.nn.relu(p.batch_norm(p.conv(x, 1 + widens)))
            y = p.batch_norm(p.conv(y))
            x = jax.nn.relu(y + (p.batch_norm(p.conv(x, 2)) if widens else x))
    return p.dense(x.mean((1, 2)))


def separable(p: Pass, x: Any) -> Any:
    x = jax.nn.relu(p.batch_norm(p.conv(x)))
    for _, stride in w.SEPARABLE:
        x = jax.nn.relu(p.batch_norm(p.depthwise(x, stride)))
        x = jax.nn.relu(p.batch_norm(p.conv(x)))
    return p.dense(x.mean((1, 2)))


def rnn(p: Pass, x: Any) -> Any:
    def step(states: Any, z: Any, kernel: Any) -> Any:
        (h,) = states
        return (jnp.tanh(z + h @ kernel),)

    return p.dense(p.recurrent(x, 1, step))


def lstm(p: Pass, x: Any) -> Any:
    def step(states: Any, z: Any, kernel: Any) -> Any:
        h, c = states
        i, f, g, o = jnp.split(z + h @ kernel, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    return p.dense(p.recurrent(x, 4, step, states=2))


def gru(p: Pass, x: Any) -> Any:
    def step(states: Any, a: Any, kernel: Any, bias: Any) -> Any:
        (h,) = states
        past = h @ kernel + bias
        keep, reset = jnp.split(jax.nn.sigmoid(a[:, : 2 * w.UNITS] + past[:, : 2 * w.UNITS]), 2, -1)
        new = jnp.tanh(a[:, 2 * w.UNITS :] + reset * past[:, 2 * w.UNITS :])
        return (keep * h + (1 - keep) * new,)

    return p.dense(p.recurrent(x, 3, step))


def transformer(p: Pass, x: Any) -> Any:
    for _ in range(w.ENCODERS):
        x = p.layer_norm(x + p.attention(x))
        x = p.layer_norm(x + p.dense(jax.nn.relu(p.dense(x))))
    return p.dense(x.mean(1))


NETWORKS = {
    "mlp": mlp,
    "cnn": cnn,
    "vgg": vgg,
    "resnet": resnet,
    "separable": separable,
    "rnn": rnn,
    "lstm": lstm,
    "gru": gru,
    "transformer": transformer,
}


def to_jax(weight: w.Weight, array: np.ndarray) -> np.ndarray:
    """An array of lamella's in the layout for images with channels last."""
    if array.ndim == 4:  # (filters, channels, height, width) -> (height, width, channels, filters)
        return array.transpose(2, 3, 1, 0)
    if weight.image:  # rows (channels, height, width) -> (height, width, channels)
        return array.reshape(*weight.image, -1).transpose(1, 2, 0, 3).reshape(array.shape)
    return array


def to_lamella(weight: w.Weight, array: np.ndarray) -> np.ndarray:
    """The way back."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if weight.image:
        channels, height, width = weight.image
        return array.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(array.shape)
    return array


def describe(options: Mapping[str, Any]) -> dict[str, Any]:
    """Versions and kernels, or why it can't take part."""
    return {
        "version": jax.__version__,
        "kernels": f"XLA, jaxlib {jaxlib.__version__}",
        "numpy": np.__version__,
        "distributions": ["jax"],
    }


def sgd(params: Any, grads: Any, slots: Any, rate: float) -> tuple[Any, Any]:
    return jax.tree.map(lambda p, g: p - rate * g, params, grads), slots


def adam(params: Any, grads: Any, slots: Any, rate: float) -> tuple[Any, Any]:
    m, v, t = slots
    t = t + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
    rate, shrink = rate / (1 - 0.9**t), 1 / (1 - 0.999**t)
    return jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v * shrink) + 1e-8), params, m, v), (m, v, t)


def prepare(
    workload: w.Workload, arrays: Mapping[str, np.ndarray], threads: int, options: Mapping[str, Any]
) -> tuple[Callable[[], Any], Callable[[], list[np.ndarray]]]:
    """A function that takes a step, and one that gives all parameters and running statistics."""
    network, weights = NETWORKS[workload.network], w.NETWORKS[workload.network].weights()
    params = [jnp.array(to_jax(weight, arrays[weight.name])) for weight in weights]
    norms = [weight.shape for weight in weights if weight.name.startswith("batch_norm") and "gamma" in weight.name]
    state = [start(shape) for shape in norms for start in (jnp.zeros, jnp.ones)]
    zeros = [[jnp.zeros_like(param) for param in params] for _ in range(2)]
    slots: Any = (*zeros, jnp.zeros((), jnp.float32)) if workload.optimizer == "adam" else ()
    update = adam if workload.optimizer == "adam" else sgd
    x = arrays["x"].transpose(0, 2, 3, 1) if workload.has_images else arrays["x"]
    x, y = jnp.array(x), jnp.array(arrays["y"], jnp.int32)

    def loss_of(params: Any, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        walk = Pass(params, state, training=True)
        scores = jax.nn.log_softmax(network(walk, x))
        return -jnp.take_along_axis(scores, y[:, None], 1).mean(), walk.new_state

    def step(params: Any, state: Any, slots: Any, x: Any, y: Any) -> tuple[Any, Any, Any, Any]:
        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params, state, x, y)
        return loss, *update(params, grads, slots, workload.rate), state

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    forward = jax.jit(lambda params, state, x: network(Pass(params, state, training=False), x))

    def train() -> float:
        nonlocal params, slots, state
        loss, params, slots, state = jax.block_until_ready(compiled(params, state, slots, x, y))
        return float(loss)

    def predict() -> np.ndarray:
        return np.asarray(jax.block_until_ready(forward(params, state, x)))

    def learned() -> list[np.ndarray]:
        back = [to_lamella(weight, np.asarray(param)) for weight, param in zip(weights, params, strict=True)]
        return back + [np.asarray(array) for array in state]

    return train if workload.training else predict, learned
