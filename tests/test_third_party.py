"""Distributions of others: found through their entry points, examined, trained, saved, loaded and exported."""

from __future__ import annotations

import json
import shutil

from wheels import ROOT

PIXELS = ROOT / "examples" / "lamella-pixels"


def test_a_distribution_of_others_installs_and_is_found(environment, installed):
    """Its own tests train, save, load and export; the option --lamella in its settings adds the laws."""
    environment.install(PIXELS)
    assert environment.run("-c", "import lamella; print(lamella.__file__)").startswith(str(installed))
    layers = environment.run("-m", "lamella", "layers").splitlines()
    (line,) = [line for line in layers if line.startswith("depth_to_space ")]
    assert "DepthToSpace  " in line
    assert "  subpixel  " in line
    assert "  lamella-pixels 0.1.0  " in line
    printed = environment.run("-c", "import lamella as lm; print(lm.layers())").splitlines()
    assert ["depth_to_space", "DepthToSpace", "lamella-pixels", "0.1.0"] in [line.split() for line in printed]
    code = "import lamella as lm, sys; lm.layer('lamella:dense', units=1); print('lamella_pixels' in sys.modules)"
    assert environment.run("-c", code) == "False\n"
    shutil.copytree(PIXELS / "tests", environment.folder / "tests")
    shutil.copy(PIXELS / "pyproject.toml", environment.folder)
    told = environment.run("-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA")
    assert "PASSED tests/test_layers.py::test_small_digits_grow_and_the_model_travels" in told
    assert "PASSED lamella:lamella-pixels::depth_to_space::DepthToSpace(2) on (N, 8, 2, 3) float32::onnx" in told
    assert "failed" not in told
    data = json.loads(environment.run("-m", "lamella", "check", "lamella_pixels:SubpixelConv2D", "--json"))
    assert data["sound"]
