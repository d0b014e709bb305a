import numpy as np
import onnx
import onnxruntime
import pytest
import torch


class RadialBasisFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, centers):
        apart = x[:, None, :] - centers
        y = torch.exp(-torch.sum(apart * apart, dim=2))
        ctx.save_for_backward(apart, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        apart, y = ctx.saved_tensors
        d = -2.0 * (dy * y)[:, :, None] * apart
        return d.sum(dim=1), -d.sum(dim=0)


class RadialBasis(torch.nn.Module):
    def __init__(self, features, units):
        super().__init__()
        if units < 1:
            raise ValueError(f"units: expected a positive int, got {units}")
        self.features = features
        self.centers = torch.nn.Parameter(torch.empty(units, features))
        torch.nn.init.xavier_uniform_(self.centers)

    def forward(self, x):
        if x.dim() != 2 or x.shape[1] != self.features or not x.is_floating_point():
            raise ValueError(f"expected floats (N, {self.features}), got {tuple(x.shape)} {x.dtype}")
        return RadialBasisFunction.apply(x, self.centers)


def test_gradient():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    centers = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RadialBasisFunction.apply, (x, centers))


def test_inputs_stay_and_calls_repeat():
    layer, x = RadialBasis(3, 4), torch.randn(5, 3, requires_grad=True)
    before = x.detach().clone()
    first, second = layer(x), layer(x)
    first.sum().backward()
    assert torch.equal(x, before)
    assert torch.equal(first, second)


def test_float32_is_accurate():
    layer, x = RadialBasis(3, 4), torch.randn(5, 3)
    exact = RadialBasisFunction.apply(x.double(), layer.centers.double())
    assert layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x).double(), exact, rtol=1e-5, atol=1e-6)


def test_rows_do_not_depend_on_each_other():
    layer, x = RadialBasis(3, 4), torch.randn(9, 3)
    torch.testing.assert_close(torch.cat([layer(row) for row in x.split([2, 3, 4])]), layer(x))


@pytest.fixture
def exported(tmp_path):
    layer, path = RadialBasis(3, 4).eval(), tmp_path / "layer.onnx"
    rows = torch.export.Dim("N")
    torch.onnx.export(layer, (torch.randn(2, 3),), path, dynamo=True, dynamic_shapes=({0: rows},), verbose=False)
    return layer, path


def test_onnx_is_the_same(exported):
    layer, path = exported
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    for rows in (1, 2, 5):
        for scale in (1.0, 30.0):
            x = scale * torch.randn(rows, 3)
            (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            np.testing.assert_allclose(y, layer(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_round_trip(tmp_path):
    layer, again, x = RadialBasis(3, 4), RadialBasis(3, 4), torch.randn(5, 3)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    again.load_state_dict(torch.load(tmp_path / "layer.pt"))
    assert torch.equal(layer(x), again(x))


def test_shapes():
    layer = RadialBasis(3, 4)
    assert layer(torch.randn(7, 3)).shape == (7, 4)
    with pytest.raises(ValueError, match="expected floats"):
        layer(torch.randn(7, 2, 3))
    with pytest.raises(ValueError, match="expected a positive int"):
        RadialBasis(3, 0)
