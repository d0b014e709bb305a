"""Small layers that several tests use."""

import lamella as lm


class Add(lm.Layer):
    def build(self, declare, a, b):
        if a.shape != b.shape:
            raise ValueError(f"expected two inputs of one shape, got {a} and {b}")
        return a

    def forward_pass(self, ctx, a, b):
        return a + b

    def backward_pass(self, ctx, dy):
        return dy, dy


class Center(lm.Layer):
    """Subtracts the mean over the batch: two sums forward, one backward, and a running mean."""

    def build(self, declare, x):
        declare.state("mean", x.shape[1:], "zeros")
        return x

    def forward_pass(self, ctx, x):
        if not ctx.training:
            return x - ctx.state.mean
        n, total = yield x.shape[0], ctx.xp.sum(x, axis=0)
        mean = total / n
        ctx.save(n)
        ctx.update(mean=0.5 * ctx.state.mean + 0.5 * mean)
        return x - mean

    def backward_pass(self, ctx, dy):
        if not ctx.training:
            return dy
        (n,) = ctx.saved
        (total,) = yield (ctx.xp.sum(dy, axis=0),)
        return dy - total / n
