"""Normalization: values brought to mean 0 and variance 1, then to a mean and scale that are learned.

`BatchNormalization` takes the statistics of a channel over the batch; the others take those of each sample by itself,
over features (`LayerNormalization`, `RMSNormalization`) or over groups of channels (`GroupNormalization`), and so are
the same in training and inference. They subtract the mean twice, since the mean of values far from 0 is rounded.
"""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.testing import Specimen
from lamella_layers.normalization import kernels  # noqa: F401  registers them
from lamella_layers.normalization.batch import (
    BatchNormalization,
    batch_normalization,
    batch_normalization_dx,
    channel_moments,
)
from lamella_layers.normalization.channels import channel_affine, channel_products, channels_last
from lamella_layers.normalization.group import GroupNormalization, group_normalization
from lamella_layers.normalization.layer import LayerNormalization, RMSNormalization, layer_normalization
from lamella_layers.normalization.samples import standardize, standardize_dx

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "batch_normalization",
    "batch_normalization_dx",
    "channel_affine",
    "channel_moments",
    "channel_products",
    "channels_last",
    "group_normalization",
    "layer_normalization",
    "standardize",
    "standardize_dx",
]


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {
        "batch_normalization": BatchNormalization,
        "group_normalization": GroupNormalization,
        "layer_normalization": LayerNormalization,
        "rms_normalization": RMSNormalization,
    }


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    docs, layer_docs, group_docs, rms_docs = (
        f"https://onnx.ai/onnx/operators/onnx__{name}Normalization.html"
        for name in ("Batch", "Layer", "Instance", "RMS")
    )
    rows, image = lm.ArraySpec(("N", 5)), lm.ArraySpec(("N", 3, 4, 6))
    one = ("BatchNormalization",)
    around = (*one, "Reshape", "Reshape")
    grouped, turned = ("Reshape", "InstanceNormalization", "Reshape"), ("Transpose", "Transpose")
    affine = ("Mul", "Add")
    rms = ("Mul", "Add", "Sqrt", "Div", "Mul", "Mul")
    return [
        Specimen(
            BatchNormalization(),
            (rows,),
            one,
            docs=docs,
            refuses=(
                ((lm.ArraySpec(("N",)),), "expected floats (N, channels)"),
                ((lm.ArraySpec(("N", 2, 3, 4, 5)),), "expected floats (N, channels)"),
                ((lm.ArraySpec(("N", 4, "F")),), "known number of channels"),
                ((rows.replace(dtype="int64", low=0, high=9),), "astype"),
            ),
        ),
        Specimen(BatchNormalization(0.9, 1e-5), (image,), one, docs=docs),
        Specimen(BatchNormalization(momentum=0.0), (lm.ArraySpec(("N", 1, 2, 3)),), one, docs=docs),
        Specimen(BatchNormalization(), (lm.ArraySpec(("N", 2, "H", "W")),), one, docs=docs),
        Specimen(BatchNormalization(), (lm.ArraySpec(("N", 6, 4)),), around, docs=docs),
        Specimen(BatchNormalization(axis=1), (lm.ArraySpec(("N", 3, "L")),), ("Unsqueeze", *one, "Squeeze"), docs=docs),
        Specimen(
            BatchNormalization(), (lm.ArraySpec(("N", "T", 4)),), (*around, "Shape", "Shape", "Concat"), docs=docs
        ),
        Specimen(
            LayerNormalization(),
            (lm.ArraySpec(("N", "T", 5)),),
            ("LayerNormalization",),
            docs=layer_docs,
            refuses=(
                ((lm.ArraySpec(("N",)),), "among the axes after the batch"),
                ((lm.ArraySpec(("N", "F")),), "known sizes along axis=-1"),
                ((rows.replace(dtype="int64", low=0, high=9),), "astype"),
            ),
        ),
        Specimen(
            LayerNormalization(axis=1, epsilon=1e-5),
            (lm.ArraySpec(("N", 3, 2, "W")),),
            ("Transpose", "LayerNormalization", "Transpose"),
            docs=layer_docs,
        ),
        Specimen(LayerNormalization(axis=(-2, 1, 3)), (image,), ("LayerNormalization",), docs=layer_docs),
        Specimen(RMSNormalization(), (lm.ArraySpec(("N", "T", 5)),), ("ReduceMean", *rms), docs=rms_docs),
        Specimen(RMSNormalization(axis=(1, 2)), (lm.ArraySpec(("N", 2, 3)),), ("ReduceMean", *rms), docs=rms_docs),
        Specimen(
            GroupNormalization(2),
            (lm.ArraySpec(("N", 4, 3, 2)),),
            (*grouped, "Reshape", "Reshape", *affine),
            docs=group_docs,
            refuses=(((image,), "share out the channels evenly, got 3"), ((lm.ArraySpec(("N",)),), "expected floats")),
        ),
        Specimen(GroupNormalization(3), (lm.ArraySpec(("N", 3, "H", 4)),), ("InstanceNormalization",), docs=group_docs),
        Specimen(
            GroupNormalization(1),
            (lm.ArraySpec(("N", "T", 4)),),
            (*grouped, *turned, *affine, "Shape", "Shape", "Mul", "Concat", "Concat"),
            docs=group_docs,
        ),
        Specimen(GroupNormalization(2), (lm.ArraySpec(("N", 6)),), (*grouped, *affine), docs=group_docs),
        Specimen(
            GroupNormalization(2, axis=1),
            (lm.ArraySpec(("N", 4, 5)),),
            ("Unsqueeze", *grouped, "Reshape", "Reshape", *affine, "Squeeze"),
            docs=group_docs,
        ),
    ]
