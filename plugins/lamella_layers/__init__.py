"""The built-in layers of lamella, one module for each family, each a plugin like any other."""

from typing import TYPE_CHECKING, Any

from lamella.elsewhere import missing
from lamella.registry import where_is
from lamella_layers.activation import Activation, PReLU
from lamella_layers.attention import MultiHeadAttention, ScaledDotProductAttention
from lamella_layers.convolution import Conv1D, Conv2D, Conv2DTranspose, DepthwiseConv2D, SeparableConv2D
from lamella_layers.dense import Dense
from lamella_layers.dropout import Dropout, GaussianNoise, SpatialDropout2D
from lamella_layers.embedding import Embedding, PositionEmbedding
from lamella_layers.merging import Add, Average, Concatenate, Dot, Maximum, Minimum, Multiply, Subtract
from lamella_layers.normalization import (
    BatchNormalization,
    GroupNormalization,
    LayerNormalization,
    RMSNormalization,
)
from lamella_layers.padding import ConstantPadding2D, Cropping2D, ZeroPadding2D
from lamella_layers.pooling import (
    AveragePooling1D,
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    MaxPooling1D,
    MaxPooling2D,
)
from lamella_layers.preprocessing import Normalization, Rescaling
from lamella_layers.recurrent import GRU, LSTM, RNN, Bidirectional
from lamella_layers.reshaping import Flatten, Permute, Reshape, UpSampling2D

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Add",
    "Average",
    "AveragePooling1D",
    "AveragePooling2D",
    "BatchNormalization",
    "Bidirectional",
    "Concatenate",
    "ConstantPadding2D",
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "Cropping2D",
    "Dense",
    "DepthwiseConv2D",
    "Dot",
    "Dropout",
    "Embedding",
    "Flatten",
    "GaussianNoise",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GroupNormalization",
    "LayerNormalization",
    "MaxPooling1D",
    "MaxPooling2D",
    "Maximum",
    "Minimum",
    "MultiHeadAttention",
    "Multiply",
    "Normalization",
    "PReLU",
    "Permute",
    "PositionEmbedding",
    "RMSNormalization",
    "Rescaling",
    "Reshape",
    "ScaledDotProductAttention",
    "SeparableConv2D",
    "SpatialDropout2D",
    "Subtract",
    "UpSampling2D",
    "ZeroPadding2D",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name, where_is(name))


def __dir__() -> list[str]:
    return __all__
