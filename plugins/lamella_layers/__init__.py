"""The built-in layers of lamella, one module for each family, each a plugin like any other."""

from lamella_layers.activation import Activation
from lamella_layers.attention import MultiHeadAttention, ScaledDotProductAttention
from lamella_layers.convolution import Conv1D, Conv2D, Conv2DTranspose, DepthwiseConv2D, SeparableConv2D
from lamella_layers.dense import Dense
from lamella_layers.embedding import Embedding, PositionEmbedding
from lamella_layers.normalization import (
    BatchNormalization,
    GroupNormalization,
    LayerNormalization,
    RMSNormalization,
)
from lamella_layers.pooling import AveragePooling2D, MaxPooling2D
from lamella_layers.preprocessing import Normalization, Rescaling
from lamella_layers.regularization import Dropout
from lamella_layers.reshaping import Flatten, Reshape

__all__ = [
    "Activation",
    "AveragePooling2D",
    "BatchNormalization",
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "Flatten",
    "GroupNormalization",
    "LayerNormalization",
    "MaxPooling2D",
    "MultiHeadAttention",
    "Normalization",
    "PositionEmbedding",
    "RMSNormalization",
    "Rescaling",
    "Reshape",
    "ScaledDotProductAttention",
    "SeparableConv2D",
]
