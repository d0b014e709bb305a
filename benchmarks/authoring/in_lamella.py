import lamella as lm
from lamella.arguments import positive


class RadialBasis(lm.Layer):
    def __init__(self, units):
        self.units = positive(units, "units")

    def build(self, declare, x):
        if len(x.shape) != 2 or not x.is_float:
            raise lm.GraphError(f"expected floats (N, features), got {x}")
        declare.parameter("centers", (self.units, x.shape[1]), "glorot_uniform")
        return x.replace(shape=("N", self.units))

    def forward_pass(self, ctx, x):
        apart = x[:, None, :] - ctx.params.centers
        y = ctx.xp.exp(-ctx.xp.sum(apart * apart, axis=2))
        ctx.save(apart, y)
        return y

    def backward_pass(self, ctx, dy):
        apart, y = ctx.saved
        d = -2.0 * (dy * y)[:, :, None] * apart
        ctx.grad(centers=-ctx.xp.sum(d, axis=0))
        return ctx.xp.sum(d, axis=1)


@lm.hookimpl
def lamella_layers():
    return {"radial_basis": RadialBasis}


# Tests: pytest --lamella in_lamella examines gradient, purity, slicing, backends, ONNX, round trip and shapes.


@lm.hookimpl
def lamella_specimens():
    refuses = (((lm.ArraySpec(("N", 2, 3)),), "expected floats (N, features)"),)
    return [lm.testing.Specimen(RadialBasis(4), (lm.ArraySpec(("N", 3)),), refuses=refuses)]
