"""The page of a server in a real browser: it shows what a model is, and gives onnxruntime's answers."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import types
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import lamella as lm
import lamella_onnx
from lamella_layers import Activation, Conv2D, Dense, Flatten, MaxPooling2D

webdriver = pytest.importorskip("selenium.webdriver", reason='the browser tests need: pip install ".[browser]"')
from PIL import Image  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
    if shutil.which(program) is None:
        pytest.skip(f"the browser tests need {program}; Debian: apt install {package}", allow_module_level=True)

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
HOSTILE = "<b id=x onclick='alert(1)'>\"model\" & co"
NUMPY = {
    "FP32": "float32",
    "FP64": "float64",
    "FP16": "float16",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
    "BYTES": "object",
}
FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16


# Models


def write(
    folder: Path, name: str, nodes: list[Any], inputs: Any, outputs: Any, arrays: Any = (), **metadata: str
) -> None:
    """Write an ONNX file; inputs and outputs are {name: (type, axes)}."""
    values = [[helper.make_tensor_value_info(key, *one) for key, one in side.items()] for side in (inputs, outputs)]
    held = [numpy_helper.from_array(np.asarray(array), key) for key, array in dict(arrays).items()]
    graph = helper.make_graph(nodes, "graph", *values, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, metadata)
    onnx.save(model, folder / f"{name}.onnx")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that take a picture, a row of numbers, a photo of any size, and everything else."""
    folder = tmp_path_factory.mktemp("models")
    images = lm.Input((1, 8, 8), low=0, high=1)
    digits = lm.Model(images, Dense(10)(Flatten()(MaxPooling2D()(Conv2D(4, 3)(images)))))
    lamella_onnx.export(digits, folder / "digits.onnx", append=Activation("softmax"))

    lamella_onnx.export(lm.Sequential([Dense(3)], input_shape=(4,)), folder / "flowers.onnx")
    flowers = onnx.load(folder / "flowers.onnx")
    for key, value in {"labels": '["setosa", "versicolor", "virginica"]', "licence": "CC BY 4.0"}.items():
        flowers.metadata_props.add(key=key, value=value)
    onnx.save(flowers, folder / "flowers.onnx")
    flowers.doc_string = "Kinds of irises."
    onnx.save(flowers, folder / "changed.onnx")

    kernel = np.random.default_rng(0).normal(size=(3, 1000)).astype("float32")
    write(
        folder,
        "photos",
        [
            helper.make_node("ReduceMean", ["photo", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "kernel"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["classes"], axis=-1),
        ],
        {"photo": (FLOAT, ["batch", "height", "width", 3])},
        {"classes": (FLOAT, ["batch", 1000])},
        {"kernel": kernel, "axes": np.array([1, 2])},
        labels="\n".join(f"kind of thing number {k}" for k in range(1000)),
    )
    write(
        folder,
        "tiles",
        [
            helper.make_node("Cast", ["tiles"], ["floats"], to=FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        ],
        {"tiles": (TensorProto.UINT8, ["N", 3, 6, 4])},
        {"mean": (FLOAT, ["N", 3])},
        {"axes": np.array([2, 3])},
    )
    everything = {
        "text": (TensorProto.STRING, ["N", 1]),
        "flags": (TensorProto.BOOL, ["N", 2]),
        "large": (TensorProto.INT64, ["N", 2]),
        "matrix": (FLOAT, ["N", "M"]),
        "half": (HALF, ["N", 2]),
        "point": (DOUBLE, []),
    }
    write(
        folder,
        HOSTILE,
        [
            helper.make_node("Identity", ["text"], ["same text"]),
            helper.make_node("Not", ["flags"], ["other flags"]),
            helper.make_node("Add", ["large", "one"], ["larger"]),
            helper.make_node("Reciprocal", ["zero"], ["infinity"]),
            helper.make_node("Mul", ["matrix", "infinity"], ["ratio"]),
            helper.make_node("Neg", ["half"], ["minus half"]),
            helper.make_node("Identity", ["point"], ["same point"]),
        ],
        everything,
        dict(
            zip(
                ("same text", "other flags", "larger", "ratio", "minus half", "same point"),
                everything.values(),
                strict=True,
            )
        ),
        {"one": np.array([1]), "zero": np.array([0], "float32")},
        **{"<script>alert(1)</script>": "<img src=x onerror=alert(1)>" + "long" * 1000},
        **{"lamella.report": '{"agreements": [{"error": 0, "allowed": 0}, null]}'},
    )
    return folder


# The server and the browser


@contextlib.contextmanager
def serving(log: Path, *arguments: str | Path, code: str | None = None) -> Iterator[str]:
    """Start ``lamella serve``, or a program of one's own, and yield the address that it tells."""
    command = ["-m", "lamella", "serve", "--port", "0"] if code is None else ["-c", code]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command, *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + 60
            while not (told := re.search(r"(?:listening|running) on (http://[\w.:]+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield f"{told[1]}/"
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def address(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the models are served."""
    with serving(tmp_path_factory.mktemp("server") / "log", models) as at:
        yield at


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = Options()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(shutil.which("chromedriver"))
    made = webdriver.Chrome(options=options, service=service)
    process = service.process
    try:
        made.set_page_load_timeout(20)
        made.set_script_timeout(20)
        yield made
    finally:
        try:
            made.quit()
        finally:
            process.kill()
            process.wait(10)


class Page:
    """The page in the browser, as a person uses it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.refusals = 0  # of the server, which the browser writes to its console too

    def open(self, address: str, model: str = "") -> None:
        self.driver.get("about:blank")  # else another fragment loads nothing
        self.driver.get(address + (f"#{quote(model, safe='')}" if model else ""))
        self.wait("return document.title !== 'Models'")
        self.wait("return document.querySelector('#status').hidden")

    def at(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, name: str) -> str:
        return self.at(name).text

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> None:
        end = time.monotonic() + 20
        while not self.js(script, *arguments):
            assert time.monotonic() < end, (
                f"{script}: {self.text('error-text') or self.js('return document.body.innerText')}"
            )
            time.sleep(0.02)

    def answered(self) -> dict[str, list[str]]:
        """Wait for the answer, and return the values of each output as the page shows them."""
        self.wait("return document.querySelector('#answer').ariaBusy === 'false'")
        assert self.text("refused") == ""
        script = """
            const values = (one) => one.querySelectorAll(one.querySelector("td.number") ? "td.number" : ".result");
            return [...document.querySelectorAll(".output")].map((one) =>
              [one.querySelector(".name").textContent, [...values(one)].map((value) => value.textContent)]);
            """
        return dict(self.js(script))

    def send(self) -> dict[str, list[str]]:
        self.at("send").click()
        return self.answered()

    def refused(self) -> str:
        """Send, and return why there is no answer."""
        self.at("send").click()
        self.wait("return document.querySelector('#answer').ariaBusy === 'false'")
        assert not self.all(".output")
        return self.text("refused")

    def field(self, label: str) -> Any:
        """The control of this accessible name."""
        (found,) = [one for one in self.all("main :is(input, textarea, select)") if one.accessible_name == label]
        return found

    def fill(self, label: str, text: str) -> None:
        """Put a text into a field, as if it were typed."""
        field = self.field(label)
        if field.tag_name == "select":
            field.send_keys(text)
        else:
            field.clear()
            field.send_keys(text, Keys.TAB)

    def mode(self, model_input: str, name: str) -> None:
        """Choose how an input is edited."""
        script = (
            "return [...document.querySelectorAll('fieldset')].find((one) => one.innerText.startsWith(arguments[0]))"
        )
        labels = self.js(script, model_input).find_elements("css selector", ".switch label")
        next(label for label in labels if label.text == name).click()

    def shell(self) -> tuple[str, dict[str, Any]]:
        """The address and the request of the curl command."""
        words = shlex.split(self.text("curl"))
        assert words[0] == "curl"
        return words[1], json.loads(words[words.index("-d") + 1])


@pytest.fixture
def page(driver: Any) -> Iterator[Page]:
    """The page; in the end, the browser must have nothing to complain of."""
    made = Page(driver)
    driver.get("about:blank")
    driver.get_log("browser")
    look(made, 1280, "light")
    yield made
    told = [entry for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
    of_server = [entry for entry in told if entry["source"] == "network"]
    assert [entry["message"] for entry in told if entry not in of_server] == []
    assert len(of_server) == made.refusals, of_server


def look(page: Page, width: int, scheme: str) -> None:
    """Choose the width of the window and the colours that the person prefers."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def feeds(request: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        one["name"]: np.array(one["data"], NUMPY[one["datatype"]]).reshape(one["shape"]) for one in request["inputs"]
    }


def agrees(shown: dict[str, list[str]], file: Path, request: dict[str, Any]) -> bool:
    """Whether the page shows what onnxruntime gives for a request, in all digits of float32."""
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    assert list(shown) == names
    for name, array in zip(names, session.run(None, feeds(request)), strict=True):
        if array.dtype.kind == "f":
            np.testing.assert_allclose(np.array(shown[name], array.dtype), array.ravel()[:500], rtol=2e-6)
        else:
            assert [text.lower() for text in shown[name]] == [str(value).lower() for value in array.ravel()[:500]]
    return True


# What it shows


def test_it_shows_what_a_model_is(page, address, models):
    page.open(address, "flowers")
    assert page.text("name") == page.driver.title == "flowers"
    facts = dict(zip(*[iter(page.text("facts").split("\n"))] * 2, strict=True))
    file = models / "flowers.onnx"
    assert facts["Version"] == "1"
    assert facts["Producer"].startswith("lamella")
    assert float(facts["Size"].removesuffix(" kB")) == pytest.approx(file.stat().st_size / 1000, rel=0.01)
    assert facts["ONNX opset"] == str(onnx.load(file).opset_import[0].version)
    assert re.fullmatch(r"[\d.]+ (ms|µs)", facts["Time per row"])
    assert page.text("input-list").split("\n") == ["input_1", "FP32, N × 4"]
    assert page.text("output-list").split("\n") == ["dense_1", "FP32, N × 3", "3 labels"]
    assert "joined into batches of up to 1,024 rows" in page.text("batching")
    assert page.text("reason")
    assert page.text("metadata").split("\n") == ["licence", "CC BY 4.0"]

    report = json.loads({one.key: one.value for one in onnx.load(file).metadata_props}["lamella.report"])
    rows = [[cell.text for cell in row.find_elements("css selector", "td")] for row in page.all("#parity tbody tr")]
    assert [row[0] for row in rows] == [one["data"] for one in report["agreements"]]
    assert [float(row[2]) for row in rows] == pytest.approx([one["error"] for one in report["agreements"]], rel=0.05)
    assert {row[-1] for row in rows} == {"✓ agrees"}
    assert f"onnxruntime {report['versions']['onnxruntime']}" in page.text("parity")

    page.open(address, "changed")
    assert page.text("description") == "Kinds of irises."
    assert page.text("parity").startswith("The file was changed after its export")

    page.open(address, "photos")
    assert page.text("input-list").split("\n") == ["photo", "FP32, batch × height × width × 3"]
    assert page.text("parity") == "The file holds no report. Files that lamella exports hold one."
    assert not page.at("metadata-card").is_displayed()


def test_it_lists_the_models(page, address):
    page.open(address)
    links = page.all("#models a")
    assert sorted(link.text for link in links) == sorted(["changed", "digits", "flowers", "photos", "tiles", HOSTILE])
    for link in links:
        link.click()
        page.wait("return document.title === arguments[0] && document.querySelector('#status').hidden", link.text)
        assert page.text("name") == link.text
        assert link.get_attribute("aria-current") == "page"
    page.driver.back()
    page.wait("return document.title === arguments[0] && document.querySelector('#status').hidden", links[-2].text)


def test_one_that_is_not_ready_says_why(page, models, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    with serving(tmp_path / "log", tmp_path / "models") as address:
        urllib.request.urlopen(f"{address}v2/repository/models/digits/unload", b"{}")
        page.open(address, "digits")
        assert re.fullmatch("digits is not ready. .*unloaded.*", page.text("error-text"))
        assert not page.at("model").is_displayed()
        assert page.at("models").text.count("not ready") == 1
        page.open(address)
        assert page.text("name") != "digits"


def test_names_and_metadata_are_texts(page, address):
    page.open(address, HOSTILE)
    assert page.text("name") == HOSTILE
    assert page.text("metadata").startswith("<script>alert(1)</script>\n<img src=x onerror=alert(1)>long")
    assert page.text("metadata").endswith("long … (4,028 characters)")
    assert len(page.text("metadata")) < 500
    assert page.text("parity") == "The report in the file can't be read."
    page.send()
    assert page.js("return document.querySelectorAll('b, #x, main script, main img').length") == 0


# What it answers


def test_what_is_sent_is_answered_as_by_onnxruntime(page, address, models, tmp_path):
    page.open(address, "flowers")
    assert agrees(page.send(), models / "flowers.onnx", page.shell()[1])
    assert re.fullmatch(r"Answered in [\d.]+ ms, network included\.", page.text("told"))
    assert [one.text for one in page.all(".bars .label")] == ["setosa", "versicolor", "virginica"]
    scores = [float(one.text) for one in page.all(".bars .value")]
    best = ["setosa", "versicolor", "virginica"][np.argmax(scores)]
    assert [one.text for one in page.all(".bars .best .label")] == [best]
    assert page.all(".result")[0].text.startswith(f"{best} ")

    for k, text in enumerate(("5.1", "-3e-2", " .5 ", "7")):
        page.fill(f"input_1, value {k}", text)
    _, request = page.shell()
    assert request["inputs"][0]["data"] == [5.1, -0.03, 0.5, 7]
    assert agrees(page.send(), models / "flowers.onnx", request)

    paste = """
        const clipboardData = new DataTransfer();
        clipboardData.setData("text", arguments[1]);
        arguments[0].dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}));
        """
    page.js(paste, page.field("input_1, value 1"), "8\t9\n10\t11")  # as spreadsheets give it; one too many
    assert page.shell()[1]["inputs"][0]["data"] == [5.1, 8, 9, 10]

    page.mode("input_1", "Text")
    assert page.field("input_1: all values").get_property("value") == "5.1, 8, 9, 10"
    page.fill("input_1: all values", "[[1 2 3 4]\n [5, 6, 7, 8]]")
    _, request = page.shell()
    assert request["inputs"][0]["shape"] == [2, 4]
    assert agrees(page.send(), models / "flowers.onnx", request)
    assert page.driver.save_screenshot(str(tmp_path / "row.png"))

    page.at("reset").click()
    assert page.shell()[1]["inputs"][0]["shape"] == [1, 4]
    assert page.text("told") == "Send the example, or change it first."


def test_a_drawing_is_answered(page, address, models, tmp_path):
    page.open(address, "digits")
    example = np.array(page.shell()[1]["inputs"][0]["data"])
    assert len(set(example)) > 30
    page.field("Invert").click()
    page.answered()
    np.testing.assert_allclose(page.shell()[1]["inputs"][0]["data"], 1 - example, atol=1 / 255)
    page.field("Invert").click()
    (pad,) = page.all(".pad")
    stroke = ActionChains(page.driver, duration=10)
    for k, (x, y) in enumerate(((-0.25, -0.3), (0.25, -0.3), (-0.08, 0.3))):  # of the pad, from its middle
        stroke.move_to_element_with_offset(pad, round(x * pad.size["width"]), round(y * pad.size["height"]))
        if k == 0:
            stroke.click_and_hold()
    stroke.release().perform()
    shown = page.answered()
    address_of_infer, request = page.shell()
    image = np.reshape(request["inputs"][0]["data"], (8, 8))
    assert image[1, 3:5].min() > 0.5  # the bar of the 7
    assert image[:, 0].max() == image[3:6, 6:].max() == 0
    assert agrees(shown, models / "digits.onnx", request)
    values = np.array(shown["activation_1"], "float32")
    assert page.all(".result")[0].text == f"{values.argmax()} {100 * values.max():.1f} %"
    assert len(page.all(".bars li")) == 10
    assert page.driver.save_screenshot(str(tmp_path / "drawing.png"))

    body = json.dumps(request).encode()
    answer = json.load(urllib.request.urlopen(urllib.request.Request(address_of_infer, body)))
    assert answer["outputs"][0]["data"] == pytest.approx(values, rel=1e-5)

    (clear,) = [one for one in page.all("form button") if one.text == "Clear"]
    clear.click()
    page.answered()
    assert set(page.shell()[1]["inputs"][0]["data"]) == {0}
    pad.send_keys(Keys.ARROW_UP, " ", *[Keys.ARROW_DOWN] * 10, " ")
    page.answered()
    image = np.reshape(page.shell()[1]["inputs"][0]["data"], (8, 8))
    assert image[2:5, 3:5].min() > 0.2
    assert image[:, :2].max() == image[:, 6:].max() == 0
    page.field("Invert").click()
    page.answered()
    np.testing.assert_allclose(np.reshape(page.shell()[1]["inputs"][0]["data"], (8, 8)), 1 - image, atol=1e-6)
    pad.send_keys(Keys.ESCAPE)
    page.answered()
    assert set(page.shell()[1]["inputs"][0]["data"]) == {1}


def test_an_image_file_is_answered(page, address, models, tmp_path):
    page.open(address, "photos")
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [51, 102, 204]]], "uint8")
    picture = colours.repeat(40, 0).repeat(40, 1)
    picture = np.pad(picture, ((0, 0), (60, 60), (0, 0)))  # margins, which the middle is without
    Image.fromarray(picture).save(tmp_path / "picture.png")
    for side in ("Height", "Width"):
        page.fill(side, "4")
        page.answered()
    (file,) = page.all("input[type=file]")
    file.send_keys(str(tmp_path / "picture.png"))
    page.wait("return document.querySelector('.seen').innerText.includes('4 × 4, values from 0 to 1')")
    shown = page.answered()
    _, request = page.shell()
    (given,) = request["inputs"]
    assert given["shape"] == [1, 4, 4, 3]
    image = np.reshape(given["data"], (4, 4, 3))
    np.testing.assert_allclose(image[::3, ::3], colours / 255, atol=0.01)
    assert agrees(shown, models / "photos.onnx", request)
    assert len(page.all(".bars li")) == 10
    assert "The best 10 of 1,000." in page.text("outputs")
    page.all(".output summary")[0].click()
    values = page.all(".output details")[0].text.replace("\n", " ")
    ends = re.search(r"The first 500 of 1,000 values\. They go from (\S+) to (\S+)\.", values)
    (classes,) = onnxruntime.InferenceSession(models / "photos.onnx").run(None, feeds(request))
    assert [float(end) for end in ends.groups()] == pytest.approx([classes.min(), classes.max()], rel=1e-5)

    page.fill("Pixels from", "0 to 255")
    page.answered()
    np.testing.assert_allclose(np.reshape(page.shell()[1]["inputs"][0]["data"], (4, 4, 3))[::3, ::3], colours, atol=2)
    assert page.driver.save_screenshot(str(tmp_path / "photo.png"))

    page.open(address, "tiles")  # channels first, integers, and taller than the file
    assert not page.js("return document.querySelector('.settings select')")
    page.all("input[type=file]")[0].send_keys(str(tmp_path / "picture.png"))
    page.wait("return document.querySelector('.seen').innerText.includes('4 × 6, values from 0 to 255')")
    shown = page.answered()
    _, request = page.shell()
    image = np.reshape(request["inputs"][0]["data"], (3, 6, 4))
    np.testing.assert_allclose(image[:, ::5, ::3], colours.transpose(2, 0, 1), atol=2)
    assert agrees(shown, models / "tiles.onnx", request)

    dropped = """
        const [content, name] = arguments;
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([Uint8Array.from(content)], name));
        const event = new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true});
        document.querySelector(".pad").dispatchEvent(event);
        """
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "dark.png")
    page.js(dropped, list((tmp_path / "dark.png").read_bytes()), "dark.png")
    page.wait("return document.querySelector('.seen').innerText.includes('values from 1 to 3')")
    assert agrees(page.answered(), models / "tiles.onnx", page.shell()[1])

    (tmp_path / "no-image.png").write_bytes(b"no image")
    page.all("input[type=file]")[0].send_keys(str(tmp_path / "no-image.png"))
    page.wait("return document.querySelector('.picture .bad').innerText === arguments[0]", NO_IMAGE)


NO_IMAGE = "no-image.png is no image that this browser can read."


def test_all_datatypes_and_shapes_are_answered(page, address, models):
    page.open(address, HOSTILE)
    page.fill("text", "Grüße \"' \\ <b> \N{ROCKET}")
    page.fill("flags, value 0", "false")
    page.fill("flags, value 1", "true")
    page.fill("large, value 0", str(2**63 - 2))
    page.fill("large, value 1", str(-(2**63)))
    page.fill("half, value 0", "0.1")
    page.fill("point", "0.1234567890123456")
    page.fill("matrix: all values", "1, -1, 0, 2, nan, -inf")
    page.fill("Shape", "1 × 6")
    shown = page.send()
    assert shown["larger"] == [str(2**63 - 1), str(-(2**63) + 1)]
    assert shown["same text"] == ["Grüße \"' \\ <b> \N{ROCKET}"]
    assert shown["other flags"] == ["true", "false"]
    assert shown["ratio"] == ["Infinity", "-Infinity", "NaN", "Infinity", "NaN", "-Infinity"]
    assert shown["same point"] == ["0.1234567890123456"]
    _, request = page.shell()
    assert agrees(shown, models / f"{HOSTILE}.onnx", request)


def test_the_programs_send_what_the_page_sends(page, address, monkeypatch):
    """The shell command is parsed by the other tests; the Python code runs here, with a client that only notes."""
    noted: dict[str, Any] = {}

    class InferInput:
        def __init__(self, name: str, shape: list[int], datatype: str) -> None:
            self.head = {"name": name, "datatype": datatype, "shape": shape}

        def set_data_from_numpy(self, array: np.ndarray) -> None:
            assert array.dtype == NUMPY[self.head["datatype"]]
            assert list(array.shape) == self.head["shape"]
            self.array = array

    class InferenceServerClient:
        def __init__(self, url: str) -> None:
            noted["url"] = url

        def infer(self, model: str, inputs: list[InferInput]) -> Any:
            noted.update(model=model, inputs=inputs)
            return types.SimpleNamespace(as_numpy=noted.setdefault("outputs", []).append)

    module = types.ModuleType("tritonclient.http")
    module.InferInput, module.InferenceServerClient = InferInput, InferenceServerClient
    package = types.ModuleType("tritonclient")
    package.http = module
    monkeypatch.setitem(sys.modules, "tritonclient", package)
    monkeypatch.setitem(sys.modules, "tritonclient.http", module)

    page.open(address, HOSTILE)
    page.fill("text", "\"'\\ \n${}")
    where, request = page.shell()
    exec(page.text("python"), {})
    assert f"http://{noted['url']}/" == address
    assert where == f"{address}v2/models/{quote(HOSTILE, safe=chr(39) + '()')}/infer"
    assert noted["model"] == HOSTILE
    assert noted["outputs"] == ["same text", "other flags", "larger", "ratio", "minus half", "same point"]
    for given, sent in zip(noted["inputs"], feeds(request).values(), strict=True):
        np.testing.assert_array_equal(given.array, sent)


def test_programs_are_copied(page, address):
    page.open(address, "flowers")
    permissions = {"origin": address, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
    for name in ("curl", "python"):
        page.at(f"copy-{name}").click()
        page.wait("return document.querySelector(arguments[0]).innerText === 'Copied'", f"#copy-{name}")
        read = "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](`${error}`))"
        assert page.driver.execute_async_script(read) == page.text(name)
    page.js("navigator.clipboard.writeText = () => Promise.reject(new Error('no HTTPS'))")
    page.at("copy-curl").click()
    page.wait("return document.querySelector('#copy-curl').innerText === 'Selected'")
    assert page.js("return getSelection().toString()") == page.text("curl")


def test_a_long_request_is_a_file(page, address, models, monkeypatch, tmp_path):
    page.open(address, "photos")
    assert "-d @request.json" in page.text("curl")
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.at("download").click()
    end = time.monotonic() + 20
    while not (tmp_path / "request.json").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    request = json.loads((tmp_path / "request.json").read_text())
    assert agrees(page.send(), models / "photos.onnx", request)
    assert 'open("request.json")' in page.text("python")
    compile(page.text("python"), "python", "exec")


# What goes wrong


def test_mistakes_are_told(page, address):
    page.open(address, "flowers")
    for text, told in {
        "": "input_1: expected a number, got nothing.",
        "1,5": 'input_1: expected a number, got "1,5".',
        "0x": 'input_1: expected a number, got "0x".',
    }.items():
        page.fill("input_1, value 2", text)
        assert page.refused() == told
    page.fill("input_1, value 2", "1")
    page.mode("input_1", "Text")
    page.fill("input_1: all values", "1 2 3")
    assert page.refused() == "input_1: N × 4 takes a multiple of 4 values, got 3."
    page.mode("input_1", "Fields")
    assert page.all("fieldset .bad")[0].text == "input_1: N × 4 takes a multiple of 4 values, got 3."
    page.fill("input_1: all values", "1 2 3 4")
    page.send()

    page.open(address, HOSTILE)
    page.fill("large, value 0", str(2**63))
    assert page.refused() == f'large: expected an integer from {-(2**63)} to {2**63 - 1}, got "{2**63}".'
    page.fill("large, value 0", "1.5")
    assert page.refused() == 'large: expected an integer, got "1.5".'
    page.at("reset").click()
    page.fill("Shape", "1 × 3")
    assert re.fullmatch(r"matrix: the shape 1 × 3 takes 3 values, got \d+\.", page.refused())
    page.fill("Shape", "N × 3")
    assert page.refused() == 'matrix: expected N × M with a number for each axis, got the shape "N × 3".'


def test_a_model_without_an_example_is_filled_by_hand(page, tmp_path):
    write(
        tmp_path,
        "choosy",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": (FLOAT, ["N", "M"])},
        {"y": (FLOAT, [7, 11])},
        {"shape": np.array([7, 11])},
    )
    with serving(tmp_path / "log", tmp_path / "choosy.onnx") as address:
        page.open(address)
        assert page.text("told").startswith("The server found no example that the model answers.")
        assert "Time per row" not in page.text("facts")
        page.fill("x: all values", " ".join(map(str, range(77))))
        page.fill("Shape", "1 x 77")
        assert page.send()["y"] == [str(k) for k in range(77)]
        assert page.shell()[1]["inputs"][0]["shape"] == [1, 77]


def test_what_the_server_refuses_is_told(page, models, tmp_path):
    write(
        tmp_path,
        "table",
        [helper.make_node("Gather", ["rows", "ids"], ["row"])],
        {"ids": (TensorProto.INT64, ["N", 1])},
        {"row": (FLOAT, ["N", 1, 2])},
        {"rows": np.zeros((5, 2), "float32")},
    )
    with serving(tmp_path / "log", tmp_path / "table.onnx") as address:
        page.open(address)
        assert not page.at("models").is_displayed()
        page.fill("ids", "9")
        assert re.match(r"400: .*9", page.refused())
        page.refusals += 1
        page.fill("ids", "3")
        page.send()
        assert page.driver.save_screenshot(str(tmp_path / "refused.png"))
    assert page.refused() == "The server does not answer. Is it still running?"
    page.refusals += 1


def test_it_asks_for_the_token(page, models, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    with serving(tmp_path / "log", models / "flowers.onnx", "--token-file", tmp_path / "token") as address:
        page.driver.get("about:blank")
        page.driver.get(address)
        page.wait("return document.querySelector('#access').open")
        assert page.driver.save_screenshot(str(tmp_path / "token.png"))
        page.at("access-cancel").click()
        page.wait("return !document.querySelector('#error').hidden")
        assert page.text("error-text") == "The server asks for a token."
        page.at("again").click()
        page.wait("return document.querySelector('#access').open")
        page.at("token").send_keys("wrong", Keys.ENTER)
        page.wait("return document.querySelector('#access-told').innerText !== ''")
        assert page.text("access-told") == "The server did not take this token."
        page.at("token").send_keys("s3cret", Keys.ENTER)
        page.wait("return !document.querySelector('#model').hidden")
        page.send()
        assert '-H "Authorization: Bearer $TOKEN"' in page.text("curl")
        assert "s3cret" not in page.text("curl") + page.text("python")
        compile(page.text("python"), "python", "exec")
        page.driver.refresh()  # the tab keeps it
        page.wait("return !document.querySelector('#model').hidden")
        assert page.js("return Object.values(sessionStorage)") == ["s3cret"]
        assert page.js("return localStorage.length + document.cookie.length") == 0
    page.refusals += 3


def test_it_works_under_a_prefix(page, models, tmp_path):
    code = """
import sys, uvicorn, lamella_serve
from starlette.applications import Starlette
from starlette.routing import Mount
application = Starlette(routes=[Mount("/some/where", lamella_serve.application(sys.argv[1]))])
uvicorn.run(application, port=0)
"""
    with serving(tmp_path / "log", models / "flowers.onnx", code=code) as address:
        page.open(f"{address}some/where/")
        where, request = page.shell()
        assert where == f"{address}some/where/v2/models/flowers/infer"
        assert f'"{address[7:]}some/where"' in page.text("python")
        assert agrees(page.send(), models / "flowers.onnx", request)


# How it looks, and for whom


@pytest.mark.parametrize("model", ["digits", "flowers", "photos", "tiles", HOSTILE])
def test_it_fits_any_window_in_light_and_dark(page, address, model, tmp_path):
    page.open(address, model)
    page.send()
    page.js("for (const one of document.querySelectorAll('details')) one.open = true")
    grounds = {}
    for width in (360, 760, 1280):
        for scheme in ("light", "dark"):
            look(page, width, scheme)
            inside, window = page.js(
                "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert inside <= window <= width
            wide = page.js(
                "return [...document.querySelectorAll('body *')].filter((one) => one.clientWidth && "
                "one.scrollWidth > one.clientWidth + 1 && !one.matches('input, canvas, .file, .switch *'))"
                ".map((one) => one.id || one.outerHTML.slice(0, 80))"
            )
            assert wide == []
            grounds[scheme] = page.js(
                "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
            )
            assert page.driver.save_screenshot(str(tmp_path / f"{width}-{scheme}.png"))
    assert max(grounds["dark"]) < 60 < 200 < min(grounds["light"])


@pytest.mark.parametrize("model", ["digits", HOSTILE])
def test_every_control_has_a_name_and_the_keyboard_reaches_it(page, address, model):
    page.open(address, model)
    controls = [
        one for one in page.all("main :is(button, input, select, textarea, canvas, [tabindex])") if one.is_displayed()
    ]
    assert len(controls) > 8
    assert [one.get_attribute("outerHTML") for one in controls if not one.accessible_name] == []
    script = """
        const unreached = new Set(document.querySelectorAll(
          "main :is(button, input:not([type=radio]), select, textarea, [tabindex]), #models a"));
        for (const one of unreached) if (!one.checkVisibility()) unreached.delete(one);
        window.unreached = unreached;
        document.addEventListener("focusin", ({target}) => unreached.delete(target));
        """
    page.js(script)
    for _ in range(60):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
    assert page.js("return [...window.unreached].map((one) => one.outerHTML)") == []
