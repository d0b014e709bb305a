"""Layers that take features along another axis than the layers before them have them: a warning, and no false alarm."""

from __future__ import annotations

import warnings

import pytest

import lamella as lm
from lamella_layers import (
    GRU,
    LSTM,
    Activation,
    Add,
    AveragePooling2D,
    BatchNormalization,
    Bidirectional,
    Concatenate,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Embedding,
    Flatten,
    GaussianNoise,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GroupNormalization,
    LayerNormalization,
    MaxPooling1D,
    MaxPooling2D,
    MultiHeadAttention,
    Normalization,
    Permute,
    PositionEmbedding,
    PReLU,
    Rescaling,
    Reshape,
    RMSNormalization,
    SeparableConv2D,
    SpatialDropout2D,
    UpSampling2D,
    ZeroPadding2D,
)


def told(layers, *shape, dtype=None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lm.Sequential(layers, input_shape=shape, input_dtype=dtype)
    assert all(issubclass(one.category, lm.MistakeWarning) and one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


WORDS = {"dtype": "int64"}
LOOK = Embedding(50, 16)
MISTAKES = [
    ([LOOK, GlobalAveragePooling1D()], (20,), "global_average_pooling1d_1: takes axis 1 of (N, 20, 16)", "(2, 1)"),
    ([LOOK, PositionEmbedding(20), Conv1D(8, 3)], (20,), "conv1d_1: takes axis 1", "Permute((2, 1)) before it"),
    ([LOOK, Dropout(0.1), GaussianNoise(0.1), MaxPooling1D()], (20,), "embedding_1 has them along axis 2", "(2, 1)"),
    ([LSTM(16), GlobalMaxPooling1D()], (20, 3), "lstm_1 has them along axis 2", "Permute((2, 1)) before it"),
    ([Bidirectional(GRU(16)), Conv1D(8, 3)], (20, 3), "bidirectional_1/merge has them along axis 2", "(2, 1)"),
    ([MultiHeadAttention(2, 3), Conv1D(8, 3)], (20, 3), "multi_head_attention_1/output has them", "(2, 1)"),
    ([Dense(6), MaxPooling1D()], (20, 3), "dense_1 has them along axis 2", "(2, 1)"),
    ([Conv1D(8, 3), BatchNormalization()], (3, 20), "batch_normalization_1: takes axis 2", "the argument axis=1"),
    ([Conv1D(8, 3), GroupNormalization(2)], (3, 20), "group_normalization_1: takes axis 2", "the argument axis=1"),
    ([Conv1D(8, 3), MaxPooling1D(), LSTM(4)], (3, 20), "lstm_1: takes axis 2", "Permute((2, 1)) before it"),
    ([Conv1D(8, 3, activation="relu"), Dense(4)], (3, 20), "dense_1: takes axis 2", "Permute((2, 1)) for every step"),
    ([Conv1D(8, 3), MultiHeadAttention(2, 4)], (3, 20), "multi_head_attention_1/query: takes axis 2", "(2, 1)"),
    ([Conv2D(8, 3), LayerNormalization()], (3, 9, 9), "layer_normalization_1: takes axis 3", "GroupNormalization(1)"),
    ([Conv2D(8, 3), PReLU(), RMSNormalization()], (3, 9, 9), "conv2d_1 has them along axis 1", "the argument axis=1"),
    ([Conv2D(8, 3), BatchNormalization(), Dense(5)], (3, 9, 9), "dense_1: takes axis 3", "Conv2D(units, 1) for every"),
    ([SeparableConv2D(8, 3), Activation("softmax")], (3, 9, 9), "activation_1: takes axis 3", "the argument axis=1"),
    ([AveragePooling2D(), Dense(5)], (3, 9, 9), "average_pooling2d_1 has them along axis 1", "Flatten() before it"),
    ([Dense(6), Conv2D(8, 3)], (3, 9, 9), "dense_1 has them along axis 3", "Permute((3, 1, 2)) before it"),
    ([Conv2D(8, 3, padding="same")], (28, 28, 3), "the shape is that of images with channels last", "(3, 28, 28), and"),
    ([Conv2D(8, 1), Flatten()], (480, 640, 1), "conv2d_1: takes axis 1 of (N, 480, 640, 1)", "x.transpose(0, 3, 1, 2)"),
    ([BatchNormalization()], (32, 32, 4), "batch_normalization_1: takes axis 1", "input_shape=(4, 32, 32)"),
    ([Rescaling(0.1), UpSampling2D(), Conv2D(3, 3)], (28, 28, 3), "up_sampling2d_1: takes axis 1", "x.transpose(0, 3"),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "shape", "words", "fix"), MISTAKES)
def test_the_wrong_axis_is_told_once_with_a_fix(layers, shape, words, fix):
    (text,) = told(layers, *shape, dtype="int64" if len(shape) == 1 else None)
    assert words in text
    assert fix in text.partition("Likely fix: ")[2]


RIGHT = [
    ([LOOK, LSTM(8), LayerNormalization(), MultiHeadAttention(2, 4), BatchNormalization(), Dense(3)], (20,)),
    ([LOOK, Permute((2, 1)), Conv1D(8, 3), BatchNormalization(axis=1), GlobalAveragePooling1D(), Dense(3)], (20,)),
    ([Conv1D(8, 3), MaxPooling1D(), Permute((2, 1)), Bidirectional(LSTM(4)), Activation("softmax")], (3, 20)),
    ([Conv1D(8, 3), Flatten(), Dense(3), LayerNormalization(), Activation("softmax")], (3, 20)),
    ([Conv1D(8, 3), GlobalMaxPooling1D(keepdims=True), Reshape((8,)), Dense(3)], (3, 20)),
    ([Conv2D(8, 3), LayerNormalization(axis=1), BatchNormalization(), GroupNormalization(2)], (3, 9, 9)),
    ([Conv2D(8, 3), Activation("relu"), Activation("softmax", axis=1), MaxPooling2D()], (3, 9, 9)),
    ([Conv2D(8, 3), Activation("softmax", axis=-1), LayerNormalization(axis=(1, 2, 3))], (3, 9, 9)),
    ([ZeroPadding2D(), DepthwiseConv2D(3), Conv2DTranspose(4, 3), SpatialDropout2D(0.1)], (3, 9, 9)),
    ([Conv2D(8, 3), GlobalAveragePooling2D(), LayerNormalization(), Dense(3)], (3, 9, 9)),
    ([Conv2D(8, 3), Reshape((8, 49)), Dense(3)], (3, 9, 9)),
    ([Conv2D(8, 3), Reshape((7, 56)), LSTM(3)], (3, 9, 9)),
    ([Conv2D(8, 1), Flatten()], (64, 4, 4)),  # as other networks give
    ([Conv2D(8, 1), Flatten()], (22, 128, 1)),  # electrodes and time
    ([Conv2D(8, 3, padding="same"), Flatten()], (1, 28, 28)),
    ([Conv2D(8, 3, padding="same"), Flatten()], (8, 8, 8)),
    ([Flatten(), Dense(3)], (28, 28, 3)),
    ([Permute((3, 1, 2)), Conv2D(8, 3)], (28, 28, 3)),
    ([Normalization(mean=0.0, variance=1.0, axis=None), Dense(3)], (28, 28, 3)),
    ([Dense(3), LSTM(3)], ("T", 3)),
    ([Normalization(mean=(1.0,) * 3, variance=(1.0,) * 3, axis=1), Conv1D(3, 3)], (3, 20)),
]


@pytest.mark.parametrize(("layers", "shape"), RIGHT)
def test_what_is_right_or_asked_for_is_no_mistake(layers, shape):
    assert told(layers, *shape, dtype="int64" if len(shape) == 1 else None) == []


def unet(merge):
    x = lm.Input((4, 16, 16))
    skip = Conv2D(8, 3, padding="same")(x)
    up = UpSampling2D()(Conv2D(8, 3, padding="same")(MaxPooling2D()(skip)))
    return lm.Model(x, Conv2D(2, 1)(merge(skip, up)))


def test_images_are_joined_along_their_channels():
    with pytest.warns(lm.MistakeWarning, match="concatenate_1: takes axis 3.*argument axis=1, or axis=3 if") as caught:
        unet(Concatenate())
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unet(Concatenate(axis=1))
        unet(Concatenate(axis=3))
        unet(Add())


def test_a_residual_block_keeps_the_axis():
    x = lm.Input((3, 20))
    y = Conv1D(8, 3, padding="same")(x)
    with pytest.warns(lm.MistakeWarning, match="dense_1: takes axis 2"):
        lm.Model(x, Dense(2)(Add()(y, Conv1D(8, 3, padding="same")(y))))


class Turned(lm.Layer):
    """It says nothing of its axes, so nobody may say that they are wrong."""

    def build(self, declare, x):
        return x.replace(shape=(x.shape[0], x.shape[2], x.shape[1]))

    def forward_pass(self, ctx, x):
        return ctx.xp.permute_dims(x, (0, 2, 1))

    def backward_pass(self, ctx, dy):
        return ctx.xp.permute_dims(dy, (0, 2, 1))


class Steps(Turned):
    """It says which axis it takes, and how to make it another."""

    def build(self, declare, x):
        declare.features(-1, fix="Turned() before it")
        return super().build(declare, x)


def test_layers_of_others_may_say_what_they_take():
    assert told([Conv1D(8, 3), Turned(), Dense(3)], 3, 20) == []
    (text,) = told([Conv1D(8, 3), Steps()], 3, 20)
    assert text == (
        "steps_1: takes axis 2 of (N, 8, 18) float32 for features, and conv1d_1 has them along axis 1. Likely fix: "
        "Turned() before it"
    )
    for wrong, words in (
        ({"axis": "x"}, "features: axis: expected an int or None, got 'x'"),
        ({"axis": 1, "fix": 3}, "fix"),
    ):
        with pytest.raises(lm.GraphError, match=words):
            lm.Declare().features(**wrong)


def test_a_loaded_model_says_nothing(tmp_path):
    with pytest.warns(lm.MistakeWarning):
        model = lm.Sequential([Conv2D(8, 3), Dense(5)], input_shape=(3, 9, 9))
    model.save(tmp_path / "m.lamella")
    lm.load(tmp_path / "m.lamella")
