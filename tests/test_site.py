"""The documentation site: it builds without a warning, its links lead on, and everything registered has its place."""

from __future__ import annotations

import doctest
import html
import importlib
import posixpath
import re
import runpy
import shutil
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from pages import run_page
from wheels import ROOT, run

import lamella as lm
import lamella_layers
import lamella_onnx
import lamella_sklearn
from lamella import hookspecs, registry

PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
LOADING = {"img": "src", "script": "src", "link": "href", "source": "srcset", "iframe": "src", "object": "data"}


class Page(HTMLParser):
    """What is on a page: where its links lead, what it loads, its anchors, its text, and what it says of itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.described = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if LOADING.get(tag) in found:
            self.loaded.append(found[LOADING[tag]])
        if tag == "meta" and found.get("name") == "description":
            self.described += found["content"]

    @property
    def text(self) -> str:
        """The words of the page, on one line."""
        return " ".join(html.unescape(re.sub(r"<[^>]+>", "", self.source)).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it, which fails at a warning."""
    folder: Path = tmp_path_factory.mktemp("site") / "built"
    run("docs/site", str(folder))
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> dict[str, Page]:
    """Every page by its path without ``.html``."""
    found = sorted(folder.rglob("*.html"))
    return {path.relative_to(folder).with_suffix("").as_posix(): Page(path) for path in found}


def test_links_and_anchors_lead_somewhere(site, folder):
    pages = {page.path: page for page in site.values()}
    missing = []
    for name, page in site.items():
        for link in {*page.links, *page.loaded}:
            if re.match(r"https?://|mailto:|data:", link):
                continue
            address, anchor = urldefrag(link)
            path = (page.path.parent / unquote(address.partition("?")[0])).resolve() if address else page.path
            is_there = path.is_file() and folder in path.parents
            if not is_there or (anchor and path in pages and anchor not in pages[path].anchors):
                missing.append((name, link))
    assert missing == []
    assert sum(len(page.links) for page in site.values()) > 5000


def test_every_page_can_be_reached_from_the_front(site):
    reached, waiting = set(), ["index"]
    while waiting:
        name = waiting.pop()
        if name in site and name not in reached:
            reached.add(name)
            links = [urldefrag(link)[0].removesuffix(".html") for link in site[name].links if "://" not in link]
            waiting += [posixpath.normpath(posixpath.join(posixpath.dirname(name), link)) for link in links if link]
    assert set(site) - reached == {"search"}  # which a form asks
    assert {*PAGES, "contributing", "changelog", "examples/index", "source/examples/serve.py"} <= reached


def test_nothing_is_asked_of_another_host(site, folder):
    asked = [(name, one) for name, page in site.items() for one in page.loaded if re.match(r"(https?:)?//", one)]
    for style in folder.rglob("*.css"):
        asked += re.findall(r"@import[^;]*//[^;]*|url\([\"']?(?:https?:)?//[^)]*\)", style.read_text(encoding="utf-8"))
    assert asked == []
    assert not [name for name, page in site.items() if "mathjax" in page.source.lower()]


def test_every_page_says_what_it_is(site):
    for name, page in site.items():
        assert re.search(r"<title>[^<]*\w", page.source), name
        assert '<meta name="viewport" content="width=device-width' in page.source, name
    for name in (*PAGES, "index", "reference/losses"):
        assert len(site[name].described) > 20, name


@pytest.mark.parametrize("kind", [kind for kind in hookspecs.KINDS if kind not in ("commands", "laws")])
def test_every_registered_name_has_its_place(site, kind):
    page = site["layers" if kind == "layers" else f"reference/{kind}"]
    told = {name for line in re.findall(r"Registered as ([\w, ]+)", page.text) for name in line.split(", ")}
    own = {entry.name for entry in registry.entries(kind) if entry.plugin.is_own}
    assert own
    assert own - {name.split()[0] for name in told} == set()


def test_every_public_name_has_its_place(site):
    """By its heading, whose anchor GitHub's rule gives."""
    places = {name: page for name, page in site.items() if name.startswith("reference/") or name == "layers"}
    anchors = {anchor for page in places.values() for anchor in page.anchors}
    for module in (lm, lm.callbacks, lm.losses, lm.optimizers, lm.metrics, lm.schedules, lm.regularization, lm.testing,
                   lamella_layers, lamella_onnx, lamella_sklearn):  # fmt: skip
        names = {name for name in module.__all__ if callable(getattr(module, name))} - {"hookimpl"}
        assert {name for name in names if name.lower() not in anchors} == set(), module.__name__
    assert {name for name in vars(hookspecs) if name.startswith("lamella_")} <= site["reference/hooks"].anchors
    for method in ("fit", "evaluate", "predict", "train_on_batch", "save", "summary"):
        assert f"model{method}" in site["reference/models"].anchors


def test_commands_show_their_options(site):
    for name in [entry.name for entry in registry.entries("commands") if entry.plugin.is_own]:
        assert f"usage: lamella {name}" in site["commands"].text
    assert "--max-batch-size" in site["commands"].text


def test_names_in_the_text_lead_to_the_reference(site):
    links = site["train"].links
    assert "reference/losses.html#huber" in links  # lm.losses.Weighted("huber", 0.1) is of the losses, too
    assert "reference/losses.html#meansquarederror" in links  # in the row of losses
    assert "reference/metrics.html#meansquarederror" in links  # and in that of metrics
    assert "reference/callbacks.html#earlystopping" in links
    assert "commands.html#lamella-serve" in site["tutorial"].links


@pytest.fixture
def program(monkeypatch):
    """What imports modules of the program that builds the site."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    yield importlib.import_module
    for path in (ROOT / "docs" / "site").glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_code_in_tables_breaks_behind_punctuation_only(folder):
    text = (folder / "training-step.html").read_text(encoding="utf-8")
    assert '<span class="pre">ORTSession(<wbr>env:<wbr>modelPath:<wbr>sessionOptions:)</span>' in text
    assert "<wbr>" not in "".join(re.findall(r"<pre>.*?</pre>|<h\d>.*?</h\d>", text, re.DOTALL))


def test_a_folder_of_something_else_stays(program, tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").touch()
    monkeypatch.setattr(sys, "argv", ["docs/site", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "docs" / "site" / "__main__.py"), run_name="__main__")
    assert "holds something that is no site" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


def test_a_file_is_no_folder(program, tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").touch()
    monkeypatch.setattr(sys, "argv", ["docs/site", str(tmp_path / "thesis.txt")])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "docs" / "site" / "__main__.py"), run_name="__main__")
    assert "thesis.txt is a file; name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_site_that_was_not_finished_leaves_the_last_one(program, tmp_path, monkeypatch, stop):
    """A half of one would be taken for something else the next time."""

    class Stopped:
        def __init__(self, source: Path, conf: Path, out: Path, *rest: object, **options: object) -> None:
            Path(out).mkdir(parents=True, exist_ok=True)
            Path(out, "index.html").touch()
            raise stop

    folder = tmp_path / "my site"
    folder.mkdir()
    (folder / "searchindex.js").write_text("of the last one")
    monkeypatch.setattr("sphinx.application.Sphinx", Stopped)
    monkeypatch.setattr(sys, "argv", ["docs/site", str(folder)])
    with pytest.raises(stop):
        runpy.run_path(str(ROOT / "docs" / "site" / "__main__.py"), run_name="__main__")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "my site",
        "my site/searchindex.js",
    ]


def test_examples_of_the_program_run(program):
    assert [doctest.testmod(program(name)).failed for name in ("tree", "names")] == [0, 0]


def test_examples_of_the_reference_run_as_they_stand(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {page: path.read_text(encoding="utf-8") for page, path in program("tree").pages().items()}
    pages, _ = program("reference").pages(texts)
    assert sum(text.count("```pycon") for text in pages.values()) > 150
    for name, text in pages.items():
        page = tmp_path / f"{name.replace('/', '-')}.md"
        page.write_text(text, encoding="utf-8")
        run_page(page, lambda: pytest.fail("the reference installs nothing"))


def test_the_front_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / "docs" / "site" / "index.md", lambda: pytest.fail("the front installs nothing"))


def test_the_extra_brings_what_the_site_needs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {re.split(r"[>=\[]", one)[0].replace("-", "_") for one in extras["docs"]}
    text = (ROOT / "docs" / "site" / "conf.py").read_text()
    (used,) = re.findall(r"^extensions = \[(.*)\]", text, re.MULTILINE)
    assert brought == {*re.findall(r'"(\w+)"', used), "furo", "lamella", "sphinx"} - {"links"}


def test_on_a_small_screen_nothing_sticks_out_and_from_a_disk_it_can_be_searched(folder):
    webdriver = pytest.importorskip("selenium.webdriver", reason='needs: pip install ".[browser]"')
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(flag)
    options.binary_location = str(shutil.which("chromium"))
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        for page in (
            "index",
            "tutorial",
            "train",
            "coming-from",
            "speed",
            "reference/losses",
            "reference/models",
            "layers",
        ):
            driver.get((folder / f"{page}.html").as_uri())
            width = driver.execute_script("return document.documentElement.scrollWidth")
            assert width <= 390, page
        driver.get(f"{(folder / 'search.html').as_uri()}?q=dropout")
        driver.implicitly_wait(10)
        found = driver.find_elements("css selector", "#search-results li a")
        assert "layers.html" in " ".join(one.get_attribute("href") for one in found)
        assert driver.get_log("browser") == []
    finally:
        driver.quit()
