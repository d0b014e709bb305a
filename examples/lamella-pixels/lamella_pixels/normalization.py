"""Normalization of images by less than all the statistics of a batch."""

import lamella as lm
from lamella.arguments import fraction, number

__all__ = ["FilterResponseNormalization", "MeanOnlyBatchNormalization"]


def channels_of(x: lm.ArraySpec) -> int:
    """The number of channels of images (N, channels, height, width)."""
    if len(x.shape) != 4 or not isinstance(x.shape[1], int) or not x.is_float:
        raise lm.GraphError(
            f"expected float images (N, channels, height, width) with a known number of channels, got {x}. "
            "Likely fix: Reshape((channels, height, width)) before this layer"
        )
    return x.shape[1]


def column(ctx, vector):
    """(C,) -> (C, 1, 1), which goes with images."""
    return ctx.xp.reshape(vector, (-1, 1, 1))


class FilterResponseNormalization(lm.Layer):
    """Divides each channel of each image by its root mean square, and bends it at a learned threshold:
    ``y = max(gamma x / sqrt(mean(x^2) + epsilon) + beta, tau)``.

    It needs no activation after it, and no batch: one image alone gives what it gives among others.

    Arguments:
        epsilon: added to the mean square; above 0, so that black channels stay finite.

    Shapes: (N, channels, height, width) -> the same. Parameters: ``gamma``, ``beta``, ``tau``, all (channels,).

    Raises:
        ArgumentError: if ``epsilon`` is not above 0.
        GraphError: if the input is no image, or one of integers.

    Source: Singh and Krishnan, https://arxiv.org/abs/1911.09737

    >>> import lamella as lm
    >>> model = lm.Sequential([FilterResponseNormalization()], input_shape=(1, 1, 2))
    >>> model.predict([[[[3.0, -3.0]]]]).round(3)
    array([[[[1., 0.]]]], dtype=float32)
    """

    def __init__(self, epsilon: float = 1e-6):
        self.epsilon = number(epsilon, "epsilon", above=0.0)

    def build(self, declare, x):
        channels = (channels_of(x),)
        declare.parameter("gamma", channels, "ones")
        declare.parameter("beta", channels, "zeros")
        declare.parameter("tau", channels, "zeros")
        return x

    def forward_pass(self, ctx, x):
        xp = ctx.xp
        gamma, beta, tau = (column(ctx, p) for p in (ctx.params.gamma, ctx.params.beta, ctx.params.tau))
        scale = 1.0 / xp.sqrt(xp.mean(x * x, axis=(2, 3), keepdims=True) + self.epsilon)
        unit = x * scale
        y = gamma * unit + beta
        ctx.save(unit, scale, y > tau)
        return xp.maximum(y, tau)

    def backward_pass(self, ctx, dy):
        unit, scale, above = ctx.saved  # (N, C, H, W), (N, C, 1, 1), (N, C, H, W)
        xp = ctx.xp
        d = xp.where(above, dy, 0.0)
        axes = (0, 2, 3)
        ctx.grad(gamma=xp.sum(d * unit, axis=axes), beta=xp.sum(d, axis=axes), tau=xp.sum(dy - d, axis=axes))
        d = d * column(ctx, ctx.params.gamma)
        return scale * (d - unit * xp.mean(d * unit, axis=(2, 3), keepdims=True))


class MeanOnlyBatchNormalization(lm.Layer):
    """Takes from each channel its mean over the batch, and leaves its scale alone: ``y = x - mean + beta``.

    In training the mean is that of the whole batch, and a running average follows it:
    ``running = momentum running + (1 - momentum) batch``. In inference the running average takes its place.

    Arguments:
        momentum: how much of the running average stays in each step, in [0, 1).

    Shapes: (N, channels, height, width) -> the same. Parameter: ``beta``; state: ``mean``; both (channels,).

    Raises:
        ArgumentError: if ``momentum`` is not in [0, 1).
        GraphError: if the input is no image, or one of integers.

    Source: Salimans and Kingma, https://arxiv.org/abs/1602.07868

    >>> import lamella as lm
    >>> model = lm.Sequential([MeanOnlyBatchNormalization(momentum=0.5)], input_shape=(1, 1, 1))
    >>> x, y = [[[[2.0]]], [[[6.0]]]], [[[[-2.0]]], [[[2.0]]]]
    >>> loss = model.train_on_batch(x, y, loss="mean_squared_error", optimizer="sgd")
    >>> loss, model.state["mean_only_batch_normalization_1.mean"]
    (0.0, array([2.], dtype=float32))
    """

    def __init__(self, momentum: float = 0.99):
        self.momentum = fraction(momentum, "momentum")

    def build(self, declare, x):
        declare.parameter("beta", (channels_of(x),), "zeros")
        declare.state("mean", (channels_of(x),), "zeros")
        return x

    def forward_pass(self, ctx, x):
        xp, running = ctx.xp, ctx.state.mean
        if not (ctx.training and ctx.trainable):
            return x + column(ctx, ctx.params.beta - running)
        # sums over this slice go out, sums over the batch come back
        count, total = yield x.shape[0] * x.shape[2] * x.shape[3], xp.sum(x, axis=(0, 2, 3))
        mean = total / count
        ctx.update(mean=self.momentum * running + (1.0 - self.momentum) * mean)
        ctx.save(count)
        return x + column(ctx, ctx.params.beta - mean)

    def backward_pass(self, ctx, dy):
        share = ctx.xp.sum(dy, axis=(0, 2, 3))
        if ctx.trainable:
            ctx.grad(beta=share)  # of this slice; the engine adds up
        if not (ctx.training and ctx.trainable):
            return dy
        (count,) = ctx.saved
        (total,) = yield (share,)
        return dy - column(ctx, total / count)


@lm.hookimpl
def lamella_layers():
    return {
        "filter_response_normalization": FilterResponseNormalization,
        "mean_only_batch_normalization": MeanOnlyBatchNormalization,
    }


@lm.hookimpl
def lamella_specimens():
    from lamella.testing import Specimen

    image = lm.ArraySpec(("N", 3, 4, 5))
    refuses = (
        ((lm.ArraySpec(("N", 12)),), "expected float images"),
        ((lm.ArraySpec(("N", "C", 4, 4)),), "known number of channels"),
        ((image.replace(dtype="uint8"),), "expected float images"),
    )
    response, means = "https://arxiv.org/abs/1911.09737", "https://arxiv.org/abs/1602.07868"
    return [
        Specimen(FilterResponseNormalization(), (image,), docs=response, refuses=refuses),
        Specimen(FilterResponseNormalization(0.1), (lm.ArraySpec(("N", 1, "H", "W")),), docs=response),
        Specimen(MeanOnlyBatchNormalization(0.9), (image,), ("Sub", "Reshape", "Add"), docs=means, refuses=refuses),
        Specimen(MeanOnlyBatchNormalization(0.0), (lm.ArraySpec(("N", 2, "H", 3)),), docs=means),
    ]
