"""What is published is what the repository has. `make dist` goes on from there: see distribution.py."""

from __future__ import annotations

import doctest
import email
import re
import zipfile

import distribution
import hatch_build
import pytest
from wheels import ROOT, run

import lamella as lm


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built of what it holds."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "hatchling", "build", "-d", str(folder), SOURCE_DATE_EPOCH="1700000000")
    return folder


def test_the_wheel_holds_what_it_should(built):
    assert distribution.faults_of_wheel(distribution.the(built, "*.whl")) == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository, to know what is in it")
def test_the_sdist_holds_what_the_repository_does(built):
    assert distribution.faults_of_sdist(distribution.the(built, "*.tar.gz"), distribution.tracked()) == []


def test_files_of_any_name_are_of_the_repository(tmp_path, monkeypatch):
    run("-c", "import subprocess; subprocess.run(['git', 'init', '-q'], check=True)", folder=tmp_path)
    for name in ("fünf.txt", 'a "b".txt', "a b.txt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(distribution, "ROOT", tmp_path)
    assert distribution.tracked() == {"fünf.txt", 'a "b".txt', "a b.txt"}


def test_without_a_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SystemExit, match="against a git repository: fatal: not a git repository"):
        distribution.main()


def test_faults_are_found(built, tmp_path):
    """In a wheel with tests in it, a file that was changed, and none of the licences."""
    good = distribution.the(built, "*.whl")
    bad = tmp_path / good.name
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            if "/licenses/" not in name and name != "lamella_layers/py.typed":
                content = old.read(name)
                content = content.replace(b"(`docs/models.md`)", b"[here](docs/models.md)")
                new.writestr(name, content + b"#" if name == "lamella/model.py" else content)
        new.writestr("tests/test_it.py", "")
    faults = distribution.faults_of_wheel(bad)
    assert "extra: tests/test_it.py" in faults
    assert "other than in the tree: lamella/model.py" in faults
    assert "not typed: lamella_layers" in faults
    assert f"missing: lamella-{lm.__version__}.dist-info/licenses/LICENSE" in faults
    assert "a link that leads nowhere on a package index: ](docs/models.md)" in faults
    assert len(faults) == 7


def test_equal_trees_are_equal_files(built, tmp_path):
    """Given the time that a file is said to be of."""
    run("-m", "hatchling", "build", "-d", str(tmp_path), SOURCE_DATE_EPOCH="1700000000")
    for file in built.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_links_to_neighbours_become_words():
    assert doctest.testmod(hatch_build) == (0, 1)


def test_the_description_says_what_the_readme_says(built):
    with zipfile.ZipFile(distribution.the(built, "*.whl")) as archive:
        metadata = email.message_from_bytes(archive.read(f"lamella-{lm.__version__}.dist-info/METADATA"))
    assert metadata["Version"] == lm.__version__
    assert metadata["License-Expression"] == "MIT AND CC-BY-4.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme, told = (ROOT / "README.md").read_text(), metadata.get_payload()
    code = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
    assert code.findall(told) == code.findall(readme)
    assert re.findall("^#.*", told, re.MULTILINE) == re.findall("^#.*", readme, re.MULTILINE)
    assert "*Thirty handwritten digits" in told
