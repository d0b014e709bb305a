"""Convolutions beside Conv2D: what they compute, the names and sizes they have, and that kernels agree in any shape."""

import numpy as np
import pytest
from test_families import any_layout, refused, run, windows_of

import lamella as lm
from lamella_layers import Conv1D, Conv2D, Conv2DTranspose, DepthwiseConv2D, SeparableConv2D
from lamella_layers.convolution import conv, conv_dw, conv_transpose, winograd
from lamella_layers.convolution.im2col import col2im, from_rows, im2col, kernel_matrix, matrix_kernel, to_rows
from lamella_layers.windows import Windows

XP = lm.backends.get_backend("numpy").xp


def step(layer, x, **arrays):
    """Output, gradients of the parameters and of x in float64, for a loss whose slope depends on every output."""
    model = lm.Sequential([layer], input_shape=x.shape[1:], dtype="float64")
    for name in model.parameters:
        model.parameters[name] = arrays[name.rpartition(".")[2]]
    y = model.predict(x)
    _, gradients, dx = model.gradients(x, np.cos(np.arange(y.size)).reshape(y.shape), loss="mean_squared_error")
    return y, {name.rpartition(".")[2]: gradient for name, gradient in gradients.items()}, dx


@pytest.mark.parametrize(
    ("series", "image"),
    [
        ({"padding": "same", "strides": 2}, {"padding": "same", "strides": (1, 2)}),
        ({"padding": (4, 0), "dilation_rate": 2}, {"padding": ((0, 0), (4, 0)), "dilation_rate": (1, 2)}),
        ({"groups": 2}, {"groups": 2}),
        ({"padding": 3, "groups": 4}, {"padding": (0, 3), "groups": 4}),
    ],
)
def test_a_series_is_an_image_of_one_row(series, image):
    rng = np.random.default_rng(0)
    x, bias, kernel = rng.normal(size=(3, 4, 11)), rng.normal(size=8), rng.normal(size=(8, 4, 3))
    kernel = kernel[:, : 4 // series.get("groups", 1)]
    y, gradients, dx = step(Conv1D(8, 3, **series), x, kernel=kernel, bias=bias)
    wide = step(Conv2D(8, (1, 3), **image), x[:, :, None], kernel=kernel[:, :, None], bias=bias)
    np.testing.assert_allclose(y, wide[0][:, :, 0], rtol=1e-12)
    np.testing.assert_allclose(gradients["bias"], wide[1]["bias"], rtol=1e-9)
    np.testing.assert_allclose(gradients["kernel"], wide[1]["kernel"][:, :, 0], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(dx, wide[2][:, :, 0], rtol=1e-9, atol=1e-15)


def test_padding_before_a_series_hides_the_future():
    x = np.random.default_rng(1).normal(size=(1, 2, 9))
    kernel, bias = np.ones((1, 2, 3)), np.zeros(1)
    before, after = (
        run(Conv1D(1, 3, padding=(2, 0)), x * (np.arange(9) < end), kernel=kernel, bias=bias) for end in (9, 5)
    )
    np.testing.assert_allclose(before[:, :, :5], after[:, :, :5])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("size", "strides", "dilations", "pads", "more"),
    [
        ((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)), (0, 0)),
        ((2, 3), (2, 3), (1, 2), ((1, 0), (2, 1)), (1, 2)),
        ((1, 2), (3, 2), (1, 1), ((0, 0), (0, 1)), (2, 0)),
    ],
)
def test_a_transposed_convolution_is_the_sum_written_out(size, strides, dilations, pads, more, groups):
    rng = np.random.default_rng(2)
    x, kernel, bias = rng.normal(size=(2, 4, 3, 2)), rng.normal(size=(4, 6 // groups, *size)), rng.normal(size=6)
    layer = Conv2DTranspose(
        6, size, strides=strides, padding=pads, output_padding=more, dilation_rate=dilations, groups=groups
    )
    y = run(layer, x, kernel=kernel, bias=bias)
    extent = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=True)]
    sizes = [(n - 1) * s + e - sum(p) + m for n, s, e, p, m in zip((3, 2), strides, extent, pads, more, strict=True)]
    assert y.shape == (2, 6, *sizes)
    expected = np.zeros(y.shape) + bias[:, None, None]
    for (p, q), cells in windows_of(y, size, strides, dilations, pads):
        for n, c, f in np.ndindex(2, 4, 6 // groups):
            for i, j, row, column in cells:
                expected[n, c // (4 // groups) * (6 // groups) + f, row, column] += kernel[c, f, i, j] * x[n, c, p, q]
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_a_transposed_convolution_takes_sizes_back():
    for size, strides, image in (((3, 3), (2, 2), (8, 7)), ((2, 5), (3, 1), (9, 4)), ((1, 2), (3, 3), (6, 6))):
        options = {"strides": strides, "padding": "same"}
        small = Conv2D(2, size, **options)(lm.Input((1, *image))).spec.shape[2:]
        large = Conv2DTranspose(2, size, **options)(lm.Input((1, *small))).spec.shape[2:]
        assert large == tuple(n * s for n, s in zip(small, strides, strict=True))
    for height in range(3, 9):  # what strides leave over is output_padding
        small = (height - 3) // 3 + 1
        layer = Conv2DTranspose(1, (3, 1), strides=(3, 1), output_padding=((height - 3) % 3, 0))
        assert layer(lm.Input((1, small, 1))).spec.shape[2] == height


def test_the_transpose_of_same_padding_is_that_of_the_convolution():
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(3, 2, 3, 4))
    x, y = rng.normal(size=(1, 2, 8, 6)), rng.normal(size=(1, 3, 4, 2))
    options = {"strides": (2, 3), "padding": "same", "use_bias": False}
    forth, back = (
        run(Conv2D(3, (3, 4), **options), x, kernel=kernel),
        run(Conv2DTranspose(2, (3, 4), **options), y, kernel=kernel),
    )
    assert np.sum(forth * y) == pytest.approx(np.sum(x * back))


def test_a_depthwise_convolution_has_a_group_for_each_channel():
    rng = np.random.default_rng(4)
    x, kernel, bias = rng.normal(size=(2, 3, 7, 6)), rng.normal(size=(6, 1, 3, 2)), rng.normal(size=6)
    options = {"strides": 2, "padding": "same"}
    depthwise = step(DepthwiseConv2D((3, 2), depth_multiplier=2, **options), x, kernel=kernel, bias=bias)
    for name, one, other in zip(
        ("y", "gradients", "dx"),
        depthwise,
        step(Conv2D(6, (3, 2), groups=3, **options), x, kernel=kernel, bias=bias),
        strict=True,
    ):
        np.testing.assert_equal(one, other, err_msg=name)
    for f in range(6):  # filters 2 c and 2 c + 1 see channel c
        alone = run(Conv2D(1, (3, 2), **options), x[:, f // 2, None], kernel=kernel[f, None], bias=bias[f, None])
        np.testing.assert_allclose(depthwise[0][:, f], alone[:, 0], rtol=1e-12)


def test_a_separable_convolution_is_two_layers():
    model = lm.Sequential([SeparableConv2D(5, 3, depth_multiplier=2, activation="relu")], input_shape=(3, 6, 6))
    shapes = {name: array.shape for name, array in model.parameters.items()}
    assert shapes == {
        "separable_conv2d_1/depthwise.kernel": (6, 1, 3, 3),
        "separable_conv2d_1/pointwise.kernel": (5, 6, 1, 1),
        "separable_conv2d_1/pointwise.bias": (5,),
    }
    apart = lm.Sequential(
        [DepthwiseConv2D(3, depth_multiplier=2, use_bias=False), Conv2D(5, 1, activation="relu")], input_shape=(3, 6, 6)
    )
    for one, other in zip(list(apart.parameters), shapes, strict=True):
        apart.parameters[one] = model.parameters[other]
    x = np.random.default_rng(5).normal(size=(2, 3, 6, 6))
    np.testing.assert_array_equal(model.predict(x), apart.predict(x))


def test_arguments_are_checked():
    for padding in ((1, 2, 3), "causal", ((1, 2), (3, 4)), -1):
        with pytest.raises(lm.ArgumentError, match="Conv1D: padding: expected"):
            Conv1D(2, 3, padding=padding)
    with pytest.raises(lm.ArgumentError, match="Conv1D: kernel_size: expected a positive int"):
        Conv1D(2, (3, 3))
    with pytest.raises(lm.ArgumentError, match=r"output_padding=2: expected less than strides=2"):
        Conv2DTranspose(2, 3, strides=2, output_padding=2)
    with pytest.raises(lm.ArgumentError, match=r"padding='same' makes an output of size \* strides; leave"):
        Conv2DTranspose(2, 3, strides=2, output_padding=1, padding="same")
    with pytest.raises(lm.ArgumentError, match="DepthwiseConv2D: depth_multiplier: expected a positive int, got 0"):
        DepthwiseConv2D(3, depth_multiplier=0)
    for layer in (Conv1D, Conv2D, Conv2DTranspose, SeparableConv2D):  # along the width, where channels are meant
        with pytest.raises(
            lm.ArgumentError, match=r"got 'softmax', .* Likely fix: Activation\('softmax', axis=1\) after"
        ):
            layer(4, 3, activation="softmax")
    with pytest.raises(lm.ArgumentError, match="filters=4: expected a multiple of groups=3"):
        Conv2DTranspose(4, 3, groups=3)
    assert "(N, length, channels) data must be transposed" in refused(Conv1D(2, 3), (100, 2))
    assert "cuts off the whole output of (N, 1, 2, 2)" in refused(Conv2DTranspose(2, 1, padding=1), (1, 2, 2))


def test_fast_kernels_agree_with_their_references_in_any_number_of_axes(monkeypatch):
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(80):
        monkeypatch.setattr("lamella_layers.convolution.kernels._TILE_BYTES", int(rng.choice([1, 2000])))
        monkeypatch.setattr("lamella_layers.convolution.kernels._TILE_WINDOWS", int(rng.choice([1, 9])))
        monkeypatch.setattr("lamella_layers.chunks._CHUNK_BYTES", int(rng.choice([1, 2000])))
        axes = int(rng.integers(1, 3))
        n, channels, multiplier = (int(rng.integers(1, top)) for top in (5, 5, 4))
        groups = int(rng.choice([1, channels]))
        filters = channels * multiplier
        image, dilations = (tuple(map(int, rng.integers(1, top, axes))) for top in (9, 4))
        size, strides = (
            tuple(map(int, rng.integers(1, 4, axes) if rng.integers(2) else (1,) * axes)) for _ in range(2)
        )
        pads = tuple(tuple(map(int, rng.integers(0, 3, 2))) for _ in range(axes))
        try:
            windows = Windows.over(image, size=size, strides=strides, dilations=dilations, padding=pads)
        except lm.GraphError:
            continue
        x = any_layout(rng, rng.normal(size=(n, channels, *image)))
        kernel = any_layout(rng, rng.normal(size=(filters, channels // groups, *size)))
        y = any_layout(rng, rng.normal(size=(n, filters, *windows.grid)))
        for primitive, *arguments in (
            (conv, x, kernel, rng.normal(size=filters)),
            (conv_transpose, y, kernel, rng.normal(size=channels)),
            (conv_dw, x, y),
        ):
            fast, slow = (f(XP, *arguments, windows, groups=groups) for f in (primitive, primitive.reference))
            np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-12, err_msg=f"{primitive}, {windows}, {groups=}")


@pytest.mark.parametrize(
    ("height", "width", "padding"),
    [(16, 16, "same"), (15, 18, "valid"), (14, 17, ((2, 0), (0, 1))), (13, 16, ((3, 1), (0, 4)))],
)
@pytest.mark.parametrize(("channels", "filters"), [(64, 64), (64, 96)])
def test_winograds_blocks_give_what_windows_give(height, width, padding, channels, filters):
    rng = np.random.default_rng(height)
    windows = Windows.over((height, width), size=(3, 3), padding=padding)
    x = rng.normal(size=(5, height, width, channels)).transpose(0, 3, 1, 2)
    kernel, bias = rng.normal(size=(filters, channels, 3, 3)), rng.normal(size=filters)
    dy = rng.normal(size=(5, *windows.grid, filters)).transpose(0, 3, 1, 2)
    assert winograd.pays(x, filters, windows)
    for one, arguments in ((conv, (x, kernel, bias)), (conv_transpose, (dy, kernel, None)), (conv_dw, (x, dy))):
        right = one.reference(XP, *arguments, windows)
        np.testing.assert_allclose(one(XP, *arguments, windows), right, rtol=0, atol=1e-13 * abs(right).max())
        short = [None if array is None else array.astype("float32") for array in arguments]
        np.testing.assert_allclose(one(XP, *short, windows), right, rtol=0, atol=3e-6 * abs(right).max())


@pytest.mark.parametrize("backend", ["numpy", "onednn"])
@pytest.mark.parametrize("what", ["large", "infinite"])
def test_images_that_winograds_blocks_can_not_take_give_what_windows_give(what, backend):
    try:
        model = lm.Sequential([Conv2D(64, 3, use_bias=False)], input_shape=(64, 34, 34), backend=backend)
    except lm.errors.BackendError as error:
        pytest.skip(str(error))
    model.parameters["conv2d_1.kernel"] = np.full((64, 64, 3, 3), 1e-6)
    x = np.full((2, 64, 34, 34), 1e38, "float32")
    if what == "infinite":
        x = np.ones_like(x)
        x[1, 5, 7, 9] = np.inf
    plain = lm.Sequential([Conv2D(64, 3, use_bias=False)], input_shape=(64, 34, 34), backend="strict")
    plain.copy_values(model)
    y, expected = model.predict(x), plain.predict(x)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert np.isinf(y).sum() == (0 if what == "large" else 9 * 64)
    if what == "large":
        dy = np.full((2, 64, 32, 32), 1e-6, "float32")
        windows = Windows.over((34, 34), size=(3, 3))
        with np.errstate(over="ignore", invalid="ignore"):  # as the engine has it
            dw = conv_dw(lm.backends.get_backend(backend).xp, x, dy, windows)
        np.testing.assert_allclose(dw, conv_dw.reference(XP, x, dy, windows), rtol=1e-5)


@pytest.mark.parametrize("layer", [DepthwiseConv2D(3), SeparableConv2D(4, 3), Conv2DTranspose(4, 3), Conv2D(4, 3)])
def test_no_rows_give_no_rows(layer):
    model = lm.Sequential([layer], input_shape=(3, 4, 4))
    assert model.predict(np.zeros((0, 3, 4, 4))).shape == (0, *model.output_specs[0].shape[1:])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("image", "size", "strides"), [((7,), (3,), (2,)), ((6, 5), (2, 3), (1, 2))])
def test_images_as_matrices_and_back(image, size, strides, groups):
    rng = np.random.default_rng(3)
    windows = Windows.over(image, size=size, strides=strides, padding="same")
    x, kernel, y = (
        rng.normal(size=shape) for shape in ((3, 4, *image), (6, 4 // groups, *size), (3, 6, *windows.grid))
    )
    columns, rows = im2col(XP, x, windows, groups), to_rows(XP, y, groups)
    assert columns.shape == (groups, 3 * np.prod(windows.grid), np.prod(size) * 4 // groups)
    others = rng.normal(size=columns.shape)
    np.testing.assert_allclose(np.sum(columns * others), np.sum(x * col2im(XP, others, windows, 3)))  # transposes
    np.testing.assert_array_equal(from_rows(XP, rows, windows, 3, 6), y)
    np.testing.assert_array_equal(matrix_kernel(XP, kernel_matrix(XP, kernel, groups), windows), kernel)
