"""The networks in PyTorch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import workloads as w
from torch import nn


def conv(channels: int, filters: int, size: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(channels, filters, size, stride, size // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(filters, w.EPSILON, 1 - w.MOMENTUM)]


def mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, units in zip(w.MLP, w.MLP[1:], strict=False):
        layers += [nn.Linear(inputs, units), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for filters in w.CNN:
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    head = [nn.Linear(channels * 7 * 7, w.CNN_HIDDEN), nn.ReLU(), nn.Linear(w.CNN_HIDDEN, w.CLASSES)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for filters in w.VGG:
        layers += [*conv(channels, filters), nn.ReLU(), *conv(filters, filters), nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    head = [nn.Linear(channels * 4 * 4, w.VGG_HIDDEN), nn.ReLU(), nn.Linear(w.VGG_HIDDEN, w.CLASSES)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int, filters: int):
        super().__init__()
        stride = 1 if channels == filters else 2
        self.main = nn.Sequential(*conv(channels, filters, stride=stride), nn.ReLU(), *conv(filters, filters))
        self.around = nn.Sequential(*conv(channels, filters, 1, stride)) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(x) + self.around(x))


def resnet() -> nn.Module:
    channels = w.RESNET[0]
    layers = [*conv(3, channels), nn.ReLU()]
    for filters in w.RESNET:
        for _ in range(w.RESNET_BLOCKS):
            layers.append(Residual(channels, filters))
            channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, w.CLASSES))


def separable() -> nn.Module:
    channels = w.STEM
    layers = [*conv(3, channels), nn.ReLU()]
    for filters, stride in w.SEPARABLE:
        layers += [*conv(channels, channels, stride=stride, groups=channels), nn.ReLU()]
        layers += [*conv(channels, filters, 1), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, w.CLASSES))


class Last(nn.Module):
    """The output of the last step."""

    def forward(self, outputs: tuple[torch.Tensor, Any]) -> torch.Tensor:
        return outputs[0][:, -1]


def recurrent(layer: type[nn.RNNBase]) -> Callable[[], nn.Module]:
    def network() -> nn.Module:
        rnn = layer(w.FEATURES, w.UNITS, batch_first=True)
        if not isinstance(rnn, nn.GRU):
            # Both biases are added to one sum. Trained both, they would move it by twice as much as lamella's one.
            nn.init.zeros_(rnn.bias_hh_l0).requires_grad_(False)
        return nn.Sequential(rnn, Last(), nn.Linear(w.UNITS, w.CLASSES))

    return network


class Transformer(nn.Module):
    """Encoder layers, the mean over time, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        options = {"dropout": 0.0, "layer_norm_eps": w.EPSILON, "batch_first": True}
        layers = [nn.TransformerEncoderLayer(w.WIDTH, w.HEADS, w.FEED_FORWARD, **options) for _ in range(w.ENCODERS)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(w.WIDTH, w.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(1))


NETWORKS = {
    "mlp": mlp,
    "cnn": cnn,
    "vgg": vgg,
    "resnet": resnet,
    "separable": separable,
    "rnn": recurrent(nn.RNN),
    "lstm": recurrent(nn.LSTM),
    "gru": recurrent(nn.GRU),
    "transformer": Transformer,
}


def places(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Where each of lamella's arrays stands: views which are that array if joined along the last axis."""
    if isinstance(module, nn.RNNBase):
        blocks = [2, 1, 3] if isinstance(module, nn.GRU) else [1]  # lamella has z, r, h and PyTorch r, z, h
        arrays = [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0]
        arrays += [module.bias_hh_l0] if isinstance(module, nn.GRU) else []
        for array in arrays:
            parts = array.data.T.chunk(len(blocks), -1) if array.ndim == 2 else array.data.chunk(len(blocks))
            yield [parts[1], parts[0], parts[2]] if len(blocks) == 3 else list(parts)
    elif isinstance(module, nn.MultiheadAttention):
        kernels, biases = module.in_proj_weight.data.T.chunk(3, -1), module.in_proj_bias.data.chunk(3)
        for k in (0, 2, 1):  # query, value, key
            yield from ([kernels[k]], [biases[k]])
        yield from places(module.out_proj)
    elif isinstance(module, nn.TransformerEncoderLayer):
        for part in (module.self_attn, module.norm1, module.linear1, module.linear2, module.norm2):
            yield from places(part)
    elif isinstance(module, nn.Linear):
        yield from ([module.weight.data.T], [module.bias.data])
    elif isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm):
        yield from ([array.data] for array in (module.weight, module.bias) if array is not None)
    else:
        for part in module.children():
            yield from places(part)


def describe(options: Mapping[str, Any]) -> dict[str, Any]:
    """Versions and kernels, or why it can't take part."""
    if options.get("compile") and not shutil.which("c++") and not shutil.which("g++"):
        return {"missing": "torch.compile needs a C++ compiler"}
    config = torch.__config__.show()
    found = [re.search(pattern, config) for pattern in (r"CPU capability usage: (\w+)", r"BLAS_INFO=(\w+)")]
    onednn = re.search(r"MKL-DNN (v[\d.]+)", config)
    kernels = [match[1] for match in found if match] + ([f"oneDNN {onednn[1]}"] if onednn else [])
    return {
        "version": torch.__version__,
        "kernels": ", ".join(kernels),
        "numpy": np.__version__,
        "distributions": ["torch"],
    }


def prepare(
    workload: w.Workload, arrays: Mapping[str, np.ndarray], threads: int, options: Mapping[str, Any]
) -> tuple[Callable[[], Any], Callable[[], list[np.ndarray]]]:
    """A function that takes a step, and one that gives all parameters and running statistics."""
    torch.set_num_threads(threads)
    model = NETWORKS[workload.network]()
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    if options.get("channels_last"):
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    model.train(workload.training)
    found = list(places(model))
    for weight, parts in zip(w.NETWORKS[workload.network].weights(), found, strict=True):
        for part, values in zip(parts, np.split(arrays[weight.name], len(parts), axis=-1), strict=True):
            part.copy_(torch.from_numpy(values))
    network = torch.compile(model) if options.get("compile") else model
    loss_of = nn.CrossEntropyLoss()
    rule = torch.optim.Adam if workload.optimizer == "adam" else torch.optim.SGD
    optimizer = rule([one for one in model.parameters() if one.requires_grad], lr=workload.rate)

    def train() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(network(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    def predict() -> np.ndarray:
        with torch.inference_mode():
            return network(x).numpy()

    def learned() -> list[np.ndarray]:
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        state = [array for module in norms for array in (module.running_mean, module.running_var)]
        return [np.concatenate([part.numpy() for part in parts], axis=-1) for parts in found] + [
            array.numpy() for array in state
        ]

    return train if workload.training else predict, learned
