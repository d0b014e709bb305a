"""The page of examples/browser in a real browser: it trains as the desktop does, reads, keeps weights, tells faults."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import runpy
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import blocks
from safetensors import safe_open
from safetensors.numpy import load, load_file, save_file
from wheels import ROOT

import lamella as lm
import lamella_onnx
from lamella_layers import BatchNormalization, Concatenate, Dense, Dropout, Embedding, Flatten

webdriver = pytest.importorskip("selenium.webdriver", reason='the browser tests need: pip install ".[browser]"')
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.action_builder import ActionBuilder  # noqa: E402
from selenium.webdriver.common.actions.pointer_input import PointerInput  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver"), ("npm", "npm")):
    if shutil.which(program) is None:
        pytest.skip(f"the browser tests need {program}; Debian: apt install {package}", allow_module_level=True)

BUILD = runpy.run_path(str(ROOT / "examples" / "browser" / "build.py"))
SEVEN = [(-55, -80), (55, -85), (20, -20), (-10, 40), (-25, 95)]  # pixels from the middle of the pad
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the script builds."""
    folder = tmp_path_factory.mktemp("browser")
    BUILD["main"](folder)
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the folder is served, as ``python -m http.server`` does."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = Options()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    service = Service(shutil.which("chromedriver"))
    made = webdriver.Chrome(options=options, service=service)
    process = service.process
    try:
        made.set_page_load_timeout(20)
        made.set_script_timeout(40)
        made.execute_cdp_cmd("Network.enable", {})
        made.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})  # some tests take files away
        yield made
    finally:
        try:
            made.quit()
        finally:
            process.kill()
            process.wait(10)


class Page:
    """The page in the browser, as a person uses it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self) -> str:
        """Load the page; return what is told as an error, nothing if it is ready."""
        self.driver.get(self.address)
        script = "const done = arguments[0]; lamella.ready.then(() => done(''), (error) => done('' + error));"
        told = self.driver.execute_async_script(script)
        assert bool(told) == bool(self.text("error-text")), told
        return self.text("error-text")

    def at(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return self.at(name).text

    def wait(self, name: str, pattern: str, seconds: float = 30) -> str:
        """Wait until the text of an element matches."""
        end = time.monotonic() + seconds
        while not re.search(pattern, text := self.text(name)):
            assert time.monotonic() < end, f"#{name} is {text!r}, not {pattern!r}; error: {self.text('error-text')!r}"
            time.sleep(0.02)
        return text

    def train(self) -> None:
        """Press Start, and wait until training pauses by itself."""
        self.at("start").click()
        self.wait("status", "passes over the digits are done")

    def load(self, file: Path) -> None:
        self.at("load").send_keys(str(file))

    def draw(self, points: list[tuple[int, int]], kind: str = "mouse") -> None:
        """Draw a stroke on the pad with a real pointer."""
        pad = self.at("pad")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", pad)
        builder = ActionBuilder(self.driver, mouse=PointerInput(kind, kind), duration=10)
        pointer = builder.pointer_action
        pointer.move_to(pad, *points[0]).pointer_down()
        for point in points[1:]:
            pointer.move_to(pad, *point)
        pointer.pointer_up()
        builder.perform()

    def run(self, script: str, *arguments: Any) -> Any:
        """Run an asynchronous function in the page, and return its result."""
        whole = f"const done = arguments[arguments.length - 1]; (async (...arguments) => {{ {script} }})(...arguments)"
        result = self.driver.execute_async_script(
            f"{whole}.then((value) => done({{value}}), (error) => done({{error: '' + error}}));", *arguments
        )
        assert "error" not in result, result
        return result.get("value")


@pytest.fixture
def page(driver: Any, address: str) -> Page:
    made = Page(driver, address)
    look(made, 1280, "light")
    assert made.open() == ""
    return made


def look(page: Page, width: int, scheme: str) -> None:
    """Choose the width of the window and the colours that the person prefers."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def downloaded(page: Page, folder: Path) -> Path:
    """Press the button that downloads the weights, and return the file."""
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    page.at("save").click()
    file, end = folder / "lamella-digits.safetensors", time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < end, os.listdir(folder)
        time.sleep(0.02)
    return file


def digits(site: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = load_file(site / "digits.safetensors")
    return arrays["train.images"].astype("float32"), arrays["train.labels"].astype("int64")


def test_it_learns_and_stays_awake(page, tmp_path):
    assert float(page.text("before").rstrip(" %")) < 40
    page.driver.execute_script("window.beats = 0; setInterval(() => window.beats++, 20)")
    first = page.run(
        "const {images, labels} = arguments[0]; return lamella.session.step(images, labels)", batch_of(page)
    )
    page.at("reset").click()
    page.wait("steps", "^0$")
    page.driver.execute_script("window.beats = 0")
    page.train()
    assert page.driver.execute_script("return window.beats") > 20  # others had their turn between steps
    assert float(page.text("loss")) < 0.2 < 2 < first
    assert float(page.text("now").rstrip(" %")) > 94
    assert int(page.text("speed")) > 0
    assert re.search(r"\d+ steps, from [12]\.\d+ to a mean of 0\.\d+", page.at("curve").get_attribute("aria-label"))
    assert page.driver.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 20_000

    pressed = page.run(
        """
        const start = document.querySelector("#start");
        start.click();
        await new Promise((done) => setTimeout(done, 100));
        const text = start.textContent;
        start.click();
        return text;
        """
    )  # all passes may be done before the driver has clicked twice
    assert pressed == "Pause"
    page.wait("status", r"Paused: \d+\.\d % right")
    page.at("reset").click()
    page.wait("steps", "^0$")
    assert page.text("now") == page.text("before")


def batch_of(page: Page) -> dict[str, list[float]]:
    script = "const d = lamella.digits; return {images: [...d['train.images'].data.subarray(0, 2048)], labels: "
    return page.driver.execute_script(script + "[...d['train.labels'].data.subarray(0, 32)].map(Number)}")


def test_its_steps_are_those_of_the_desktop(page, site, tmp_path):
    order = np.random.default_rng(1).permutation(1497)[: 20 * 32].reshape(20, 32)
    there = page.run(
        """
        const [images, labels] = ["train.images", "train.labels"].map((name) => lamella.digits[name].data);
        const losses = [];
        for (const rows of arguments[0]) {
          const x = rows.flatMap((row) => [...images.subarray(64 * row, 64 * row + 64)]);
          losses.push(await lamella.session.step(x, rows.map((row) => labels[row])));
        }
        return losses;
        """,
        order.tolist(),
    )
    images, labels = digits(site)
    session, model = lamella_onnx.TrainingSession(site / "step"), BUILD["network"]()
    task = {"loss": "softmax_cross_entropy", "optimizer": lm.optimizers.SGD(0.2)}
    desktop = [session.step(images[rows], labels[rows]) for rows in order]
    engine = [model.train_on_batch(images[rows], labels[rows], **task) for rows in order]
    np.testing.assert_allclose(there, desktop, atol=1e-4)
    np.testing.assert_allclose(there, engine, atol=1e-4)

    file = downloaded(page, tmp_path)
    held, initial = load_file(file), load_file(site / "step" / "state.safetensors")
    assert {name: array.dtype for name, array in held.items()} == {n: array.dtype for n, array in initial.items()}
    for name, array in session.parameters.items():
        np.testing.assert_allclose(held[name], array, atol=1e-4)
        np.testing.assert_allclose(held[name], model.parameters[name], atol=1e-4)
        assert np.abs(array - initial[name]).max() > 1e-2, f"{name} has moved"

    hashes = json.loads((site / "step" / "training.json").read_text())["files"]
    with safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"lamella.training": hashes["train.onnx"]}

    # what the page saved goes on in Python
    session.load_state(file)
    assert session.steps == 20
    other = BUILD["network"](seed=1)
    other.load_weights(file)
    for name, array in other.parameters.items():
        np.testing.assert_array_equal(session.parameters[name], held[name])
        np.testing.assert_array_equal(array, held[name])

    # what Python saved goes on in the page
    session.step(images[:32], labels[:32])
    session.save_state(tmp_path / "python.safetensors")
    page.at("reset").click()
    page.wait("steps", "^0$")
    page.load(tmp_path / "python.safetensors")
    page.wait("status", r"Loaded python\.safetensors: 21 steps")
    file.unlink()
    again = load_file(downloaded(page, tmp_path))
    for name, array in load_file(tmp_path / "python.safetensors").items():
        np.testing.assert_array_equal(again[name], array)


def test_the_runner_takes_any_folder(page, site):
    words, sizes = lm.Input((6,), "int64", low=0, high=5), lm.Input((3,))
    both = BatchNormalization(momentum=0.5)(Concatenate()(Flatten()(Embedding(5, 4)(words)), sizes))
    outputs = Dense(3).named("kind")(Dropout(0.5)(both)), Dense(1).named("size")(both)
    model = lm.Model((words, sizes), outputs, seed=2**40 + 7)
    task = {"loss": ("softmax_cross_entropy", "mean_squared_error"), "optimizer": lm.optimizers.Adam(0.01)}
    lamella_onnx.export_training_step(model, site / "other", clip_norm=1.0, **task)
    draw = np.random.default_rng(0)
    x = draw.integers(0, 5, (8, 6)), draw.normal(size=(8, 3)).astype("float32")
    y = draw.integers(0, 3, 8), draw.normal(size=(8, 1)).astype("float32")
    weight = draw.uniform(size=8).astype("float32")
    losses, held, told = page.run(
        """
        const {TrainingSession} = await import("./runner.js");
        const ort = await import("./ort/ort.wasm.bundle.min.mjs");
        const session = await TrainingSession.open(new URL("other", location.href), ort);
        const [words, sizes, kind, size, weight] = arguments[0];
        const losses = [];
        for (let k = 0; k < 4; k++) {
          const options = k % 2 ? {sampleWeight: {kind: weight, size: weight}, learningRate: 0.02} : {};
          losses.push(await session.step({input_1: words, input_2: sizes}, {kind, size}, options));
        }
        const told = [];
        for (const x of [words, {input_1: words}, {input_1: words, input_2: sizes.slice(1)}]) {
          await session.predict(x).catch((error) => told.push(error.message));
        }
        const {kind: scores} = await session.predict({input_1: words, input_2: sizes});
        return [losses, [...session.save()], [...told, scores.dims]];
        """,
        [array.ravel().tolist() for array in (*x, *y, weight)],
    )
    session = lamella_onnx.TrainingSession(site / "other")
    for k, loss in enumerate(losses):
        options = {"sample_weight": (weight, weight), "learning_rate": 0.02} if k % 2 else {}
        assert session.step(x, y, **options) == pytest.approx(loss, abs=1e-4)
    held = load(bytes(held))
    assert {"batch_normalization_1.mean", "kind.kernel.m", "training.seed"} <= set(held)
    for name, array in (session.parameters | session.state).items():
        np.testing.assert_allclose(held[name], array, atol=1e-4)
    assert told == [
        'x of "input_1": expected an object with an array as "input_1"; got an array of 48.',
        'x of "input_2": expected an object with an array as "input_2"; got an object with [input_1].',
        'x of "input_2": expected the shape [N,3], so a multiple of 3 values; got 23. Likely fix: whole rows, one '
        "after another.",
        [8, 3],
    ]


# what a step is given, in place of two images of 64 values and their labels, and what is told
MISTAKES = {
    "step()": 'x of "input_1": expected an array, or an object with an array as "input_1"; got undefined.',
    "step({input: x}, y)": 'x of "input_1": expected an array, .* got an object with [input].',
    "step([x, x], y)": 'x of "input_1": arrays are flat: one typed array or list for the whole batch; got a list of',
    "step(x.slice(1), y)": 'x of "input_1": expected the shape [N,1,8,8], so a multiple of 64 values; got 127.',
    "step([], [])": 'x of "input_1": expected the shape .* got 0.',
    "step(x.map((value, k) => (k === 70 ? NaN : value)), y)": 'x of "input_1": expected finite .* NaN in row 1.',
    "step(new Float32Array(128).fill(Infinity), y)": 'x of "input_1": expected finite numbers .* Infinity in row 0.',
    "step(x.map(String), y)": 'x of "input_1": expected finite numbers .* got the text "1" in row 0.',
    "step(x.fill(1e39), y)": 'x of "input_1": expected finite numbers in the range of float32; got 1e+39 in row 0.',
    'step(new ort.Tensor("float32", x, [2, 64]), y)': 'x of "input_1": expected a tensor of float32 [N,1,8,8]; got',
    "step(x)": 'y of "dense_2": expected an array, or an object with an array as "dense_2"; got undefined.',
    "step(x, [1, 10])": 'y of "dense_2": expected labels from 0 to 9, since the output has 10 classes; got 10 in',
    "step(x, BigInt64Array.of(-5n, 1n))": 'y of "dense_2": expected labels from 0 to 9, .* got -5 in row 0.',
    "step(x, [1, 2.5])": 'y of "dense_2": expected integers in the range of int64; got 2.5 in row 1.',
    "step(x, [1, NaN])": 'y of "dense_2": expected integers .* got NaN in row 1.',
    "step(x, [1, 2, 3])": 'y of "dense_2": expected as many rows as x of "input_1" has, 2; got 3 of the shape [N].',
    "step(x, y, {sampleWeight: [1]})": 'sampleWeight of "dense_2": expected as many rows as x of "input_1" has, 2; got',
    "step(x, y, {sampleWeight: [1, -1]})": 'sampleWeight of "dense_2": expected weights of at least 0; got -1.',
    "step(x, y, {sampleWeight: [0, 0]})": 'sampleWeight of "dense_2": every row weighs 0',
    "step(x, y, {sampleWeight: [1, NaN]})": 'sampleWeight of "dense_2": expected finite numbers .* got NaN in row 1.',
    "step(x, y, {learningRate: -0.1})": "learningRate: expected a finite number of at least 0; got -0.1.",
    "step(x, y, {learningRate: NaN})": "learningRate: .* got NaN.",
    "step(x, y, {learningRate: Infinity})": "learningRate: .* got Infinity.",
    'step(x, y, {learningRate: "0.1"})': 'learningRate: .* got the text "0.1".',
    "step(x, y, {learning_rate: 0.1})": 'options: "learning_rate" is unknown; known are learningRate and sampleWeight.',
    "step(x, y, 0.1)": "options: expected an object such as {learningRate: 0.1}; got 0.1.",
    "step(x, y, {learningRate: 1e38})": "Step 0: .* a new value is not finite. Nothing of this step was kept.",
    "predict([NaN].concat(x.slice(1)))": 'x of "input_1": expected finite numbers .* got NaN in row 0.',
    "load(new ArrayBuffer(9))": "Expected a Uint8Array; .* Likely fix: new Uint8Array(buffer).",
}


def test_mistakes_of_a_program_are_told_and_nothing_is_kept(page):
    calls = ", ".join(f"(session, ort, x, y) => session.{mistake}" for mistake in MISTAKES)
    told, kept = page.run(
        f"const mistakes = [{calls}];"
        """
        const {RunnerError, TrainingSession} = await import("./runner.js");
        const ort = await import("./ort/ort.wasm.bundle.min.mjs");
        const session = await TrainingSession.open("step", ort);
        const before = session.save();
        const told = [];
        for (const make of mistakes) {
          await make(session, ort, new Array(128).fill(1), [3, 7]).then(
            () => told.push("taken"),
            (error) => told.push(error instanceof RunnerError ? `${error}` : `no RunnerError: ${error}`),
          );
        }
        return [told, `${session.save()}` === `${before}`];
        """
    )
    patterns = [".*".join(map(re.escape, words.split(".*"))) for words in MISTAKES.values()]
    wrong = [
        (mistake, one)
        for mistake, pattern, one in zip(MISTAKES, patterns, told, strict=True)
        if not re.match(f"RunnerError: {pattern}", one)
    ]
    assert wrong == []
    assert kept


def test_what_onnxruntime_refuses_is_told_in_short(page, site):
    ids = lm.Input((2,), "int64", low=0, high=5)
    model = lm.Model(ids, Dense(1)(Flatten()(Embedding(5, 2)(ids))))
    lamella_onnx.export_training_step(model, site / "words", loss="mean_squared_error", optimizer="sgd")
    told = page.run(
        """
        const {TrainingSession} = await import("./runner.js");
        const session = await TrainingSession.open("words", await import("./ort/ort.wasm.bundle.min.mjs"));
        return session.predict([1, 9]).then(String, String);
        """
    )
    assert re.fullmatch(
        r"RunnerError: onnxruntime can't run predict\.onnx with these arrays: [^\n]{,160}idx=9 [^\n]*", told
    )


def test_the_page_for_a_model_of_ones_own_works(driver, address, site, monkeypatch):
    own = list(blocks(ROOT / "docs" / "browser.md"))
    monkeypatch.chdir(site)
    exec(next(block for language, block in own if language == "python"), {})
    (html,) = [block for language, block in own if language == "html"]
    late = "<script>window.requestAnimationFrame = () => {}</script>"  # as in a hidden tab
    (site / "own.html").write_text(html.replace("<script", f"{late}<script", 1), encoding="utf-8")
    page = Page(driver, address)
    driver.get(f"{address}own.html")
    assert float(page.wait("told", r"loss 0\.\d+, predictions \[4,2\]")[5:11]) < 0.05


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state file that Python trained."""
    session, (images, labels) = lamella_onnx.TrainingSession(site / "step"), digits(site)
    draw = np.random.default_rng(0)
    for _ in range(15):
        for rows in np.array_split(draw.permutation(len(images)), len(images) // 32):
            session.step(images[rows], labels[rows])
    file = tmp_path_factory.mktemp("trained") / "trained.safetensors"
    session.save_state(file)
    return file


def test_it_reads_what_is_drawn_and_learns_from_it(page, trained):
    page.load(trained)
    page.wait("status", "Loaded")
    assert float(page.text("now").rstrip(" %")) > 94
    page.draw(SEVEN)
    page.wait("answer", r"It reads 7, at \d+\.\d %")
    shares = [int(row.split()[1]) for row in page.text("bars").replace("\n", " ").split(" %") if row]
    assert np.argmax(shares) == 7
    assert 95 <= sum(shares) <= 105

    page.at("pad").send_keys(Keys.ESCAPE)
    page.wait("answer", "Nothing is drawn")
    keys = (Keys.ARROW_UP, Keys.ARROW_UP, " ", *[Keys.ARROW_DOWN] * 14, " ")
    page.at("pad").send_keys(*keys)
    page.wait("answer", "It reads 1")
    page.at("clear").click()
    page.wait("answer", "Nothing is drawn")

    small = [(x // 4 - 60, y // 4 + 60) for x, y in SEVEN]
    page.draw(small, "touch")  # in a corner; a person whose 3 looks like this
    page.wait("answer", "It reads 7")
    page.at("label").send_keys("3")
    page.at("add").click()
    page.wait("own", "^3$")
    page.train()
    page.draw(SEVEN)
    page.wait("answer", "It reads 3")
    page.at("forget").click()
    page.wait("own", "^$")


def test_it_fits_any_window_in_light_and_dark(page, trained):
    page.load(trained)
    page.wait("status", "Loaded")
    page.draw(SEVEN)
    page.driver.execute_script("document.querySelector('#error').hidden = false")
    page.driver.execute_script("document.querySelector('#error-text').textContent = '/a-long-address'.repeat(20)")
    grounds = {}
    for width in (360, 760, 1280):
        for scheme in ("light", "dark"):
            look(page, width, scheme)
            inside, window = page.driver.execute_script(
                "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert inside <= window <= width
            wide = page.driver.execute_script(
                "return [...document.querySelectorAll('section *')].filter((one) => one.clientWidth && "
                "one.scrollWidth > one.clientWidth + 1 && !one.closest('.file')).map((one) => one.id || one.tagName)"
            )
            assert wide == []
            script = "return getComputedStyle(document.body).backgroundColor"
            grounds[scheme] = [int(part) for part in re.findall(r"\d+", page.driver.execute_script(script))]
    assert max(grounds["dark"]) < 60 < 200 < min(grounds["light"])


def test_every_control_has_a_name_and_the_keyboard_reaches_it(page):
    controls = page.driver.find_elements("css selector", "main :is(button, input, select, [tabindex])")
    assert len(controls) == 10
    assert [one.get_attribute("id") for one in controls if not one.accessible_name] == []
    reached = set()
    page.driver.execute_script("document.activeElement.blur()")
    for _ in range(20):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.add(page.driver.switch_to.active_element.get_attribute("id"))
    assert {one.get_attribute("id") for one in controls if one.is_enabled()} <= reached


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def other_format(content: bytes) -> bytes:
    return json.dumps(json.loads(content) | {"format": "other"}).encode()


def without_lists(content: bytes) -> bytes:
    return json.dumps(json.loads(content) | {"train": None}).encode()


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("step/train.onnx", None, r"step/train\.onnx is missing: the server answers 404"),
        ("step/train.onnx", cut, r"train\.onnx is damaged, or of another training step"),
        ("step/training.json", cut, r"training\.json is no JSON"),
        ("step/training.json", other_format, r"training\.json is not the manifest of a training step"),
        ("step/training.json", without_lists, r"training\.json is damaged"),
        ("digits.safetensors", cut, r'damaged: "\w+\.\w+" is not as long as its shape says'),
        ("ort/ort.wasm.bundle.min.mjs", None, r"ort\.wasm\.bundle\.min\.mjs is missing or damaged"),
        ("ort/ort-wasm-simd-threaded.wasm", None, r"ort-wasm-simd-threaded\.wasm is missing"),
        ("ort/ort-wasm-simd-threaded.wasm", cut, r"onnxruntime-web can't start in this browser"),
    ],
)
def test_faults_of_the_folder_are_told(driver, address, site, name, change, told):
    file = site / name
    content = file.read_bytes()
    try:
        if change is None:
            file.unlink()
        else:
            file.write_bytes(change(content))
        page = Page(driver, address)
        assert re.search(told, page.open())
        assert page.text("status") == "The page can't train."
        assert not page.at("start").is_enabled()
    finally:
        file.write_bytes(content)


def test_faults_of_a_person_are_told(page, site, tmp_path):
    state = load_file(site / "step" / "state.safetensors")
    name = "dense_2.kernel"
    turned = state | {name: np.array(state[name].T, order="C")}
    files = {
        "no safetensors file": b"what is this?",
        "another model": state | {"more": np.zeros(2)},
        f'no array "{name}"': {one: array for one, array in state.items() if one != name},
        f'"{name}" is float32 [10,64] in the file; expected float32 [64,10]': turned,
        "not finite": state | {name: np.full_like(state[name], np.nan)},
    }
    for told, held in files.items():
        file = tmp_path / "file.safetensors"
        if isinstance(held, bytes):
            file.write_bytes(held)
        else:
            save_file(held, file)
        page.load(file)
        page.wait("error-text", re.escape(told))
        page.at("error-close").click()
        page.wait("error-text", "^$")
    save_file(state, file, metadata={"lamella.training": "0" * 64})
    page.load(file)
    page.wait("error-text", "the state of another training step")

    for rate in ("10.5", "-1"):
        page.at("rate").clear()
        page.at("rate").send_keys(rate)
        page.at("start").click()
        page.wait("error-text", "a number from 0 to 10")
        page.wait("status", "Stopped")
        page.at("reset").click()
        page.wait("status", "back where training began")
        assert page.text("now") == page.text("before")
        assert page.at("rate").get_property("value") == "0.2"


def test_its_picture(address, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "browser")
    image = runpy.run_path(str(ROOT / "examples" / "browser" / "picture.py"))["take"](address)
    assert image.height > image.width > 600
    colors = {color for _, color in image.convert("RGB").quantize(64).convert("RGB").getcolors()}
    assert min(max(color) for color in colors) < 40  # dark
    assert any(green > 150 > red for red, green, _ in colors)  # the curve, and the bar of the answer
