"""Recurrent layers: each sequence is taken step by step, and a state is carried from each step to the next."""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.testing import Specimen
from lamella_layers.recurrent import kernels, onnx_operator, onnx_training  # noqa: F401  registers them
from lamella_layers.recurrent.bidirectional import Bidirectional
from lamella_layers.recurrent.gru import GRU
from lamella_layers.recurrent.lstm import LSTM
from lamella_layers.recurrent.rnn import RNN

__all__ = ["GRU", "LSTM", "RNN", "Bidirectional"]


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"bidirectional": Bidirectional, "gru": GRU, "lstm": LSTM, "rnn": RNN}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    x, lengths, h = lm.ArraySpec(("N", "T", 3)), lm.ArraySpec(("N",), "int64", low=0, high=6), lm.ArraySpec(("N", 2))
    docs = {name: f"https://onnx.ai/onnx/operators/onnx__{name}.html" for name in ("RNN", "LSTM", "GRU")}
    plain = ("Transpose", "Transpose", "Unsqueeze", "Transpose", "Unsqueeze", "Concat", "Unsqueeze")
    ordered, whole = (*plain, "Gather", "Gather", "Gather"), ("Squeeze", "Transpose")
    cut_off, none = ("Shape", "Squeeze", "Clip"), ("Greater", "Unsqueeze")  # of lengths, and where they are 0
    refuses = (
        ((lm.ArraySpec(("N", 3)),), "timesteps, features"),
        ((lm.ArraySpec(("N", "T", "F")),), "known number of features"),
        ((x, lengths.replace(dtype="float32")), "lengths of the sequences as integers"),
        ((x, lengths, h, h, h), "to begin with"),
        ((x, lm.ArraySpec(("N", 4))), "to begin with"),
    )
    cut: dict[str, Any] = {"gradient": "surrogate", "reason": "truncate stops gradients between parts of a sequence"}
    return [
        Specimen(RNN(2, return_sequences=False), (x,), (*plain, "RNN", "Squeeze"), docs=docs["RNN"], refuses=refuses),
        Specimen(
            RNN(2, activation="relu", reverse=True),
            (x, lengths, h),
            (*plain, *cut_off, "Cast", "Unsqueeze", "RNN", *whole),
            docs=docs["RNN"],
        ),
        Specimen(
            RNN(2, activation="sigmoid", return_state=True, truncate=2, use_bias=False, return_sequences=False),
            (x,),
            docs=docs["RNN"],
            **cut,
        ),
        Specimen(
            LSTM(2, return_sequences=False), (x,), (*ordered, "LSTM", "Squeeze"), docs=docs["LSTM"], refuses=refuses
        ),
        Specimen(
            LSTM(2, return_state=True),
            (x, lengths, h, h),
            (*ordered, *cut_off, "Cast", *("Unsqueeze", "Squeeze", "Where") * 2, "LSTM", *whole, *none),
            docs=docs["LSTM"],
        ),
        Specimen(LSTM(2, reverse=True, truncate=3, return_sequences=False), (x, lengths), docs=docs["LSTM"], **cut),
        Specimen(GRU(2), (lm.ArraySpec(("N", 1, 3)),), (*plain, "GRU", *whole), docs=docs["GRU"]),
        Specimen(
            GRU(2, return_state=True, reverse=True),
            (x, lengths, h),
            (*plain, *cut_off, "Cast", "Unsqueeze", "GRU", *whole, "Squeeze", "Where", *none),
            docs=docs["GRU"],
            refuses=refuses,
        ),
        Specimen(GRU(2, use_bias=False, return_sequences=False), (x, h), docs=docs["GRU"]),
        Specimen(
            Bidirectional(LSTM(2)),
            (x, lengths),
            (*(*ordered, "Clip", "Cast", "LSTM", *whole) * 2, "Shape", "Squeeze", "Concat"),
            docs=docs["LSTM"],
        ),
        Specimen(
            Bidirectional(RNN(2, return_state=True, return_sequences=False), merge_mode="mul"),
            (x, h, h),
            docs=docs["RNN"],
            refuses=(((x, h), "expected 2 states"),),
        ),
        *(
            Specimen(Bidirectional(RNN(2, return_sequences=False), merge_mode=mode), (x,), docs=docs["RNN"])
            for mode in ("sum", "ave", None)
        ),
    ]
