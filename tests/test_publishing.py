"""The package as it is published: all its tests need is in it, and no link on its page leads nowhere."""

import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://example.org/someone/inchworm"


@pytest.fixture(scope="module")
def publishing():
    """What `hatch_build.py` defines."""
    spec = importlib.util.spec_from_file_location("publishing", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of what is published."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True)
    return folder


def published(publishing, repository: str) -> dict:
    metadata: dict = {}
    publishing.Addresses(str(ROOT), {"repository": repository}).update(metadata)
    return metadata


def test_the_source_distribution_holds_every_file_of_the_repository(built):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("only a checkout knows what its files are")
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        held = {name.partition("/")[2] for name in files.getnames()}
    assert {name for name in listed.stdout.splitlines() if (ROOT / name).exists()} - held == set()


def test_the_wheel_says_where_it_runs_and_holds_the_package_alone(built):
    (archive,) = built.glob("*.whl")
    with zipfile.ZipFile(archive) as files:
        names = files.namelist()
        (metadata,) = (message_from_bytes(files.read(name)) for name in names if name.endswith("/METADATA"))
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"inchworm"}
    systems = [line for line in metadata.get_all("Classifier") if line.startswith("Operating System")]
    assert systems == ["Operating System :: MacOS", "Operating System :: POSIX :: Linux"]
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_relative_links_and_pictures_get_the_repository_s_address(publishing):
    text = "![a curve](results/a.png) and [what](docs/x.md#y), [arXiv](https://arxiv.org), [here](#here)"
    assert publishing.absolute(text, ADDRESS) == (
        f"![a curve]({ADDRESS}/raw/HEAD/results/a.png) and [what]({ADDRESS}/blob/HEAD/docs/x.md#y), "
        "[arXiv](https://arxiv.org), [here](#here)"
    )
    assert publishing.absolute(text, "") == "a curve and what, [arXiv](https://arxiv.org), [here](#here)"


@pytest.mark.parametrize("repository", [ADDRESS, ADDRESS + "/", ""])
def test_no_link_on_the_package_s_page_is_relative(publishing, repository):
    metadata = published(publishing, repository)
    links = re.findall(r"\]\(([^)]*)\)", metadata["readme"]["text"])
    assert [link for link in links if not link.startswith("https://")] == []
    assert len(links) > (10 if repository else 0)
    assert [url for url in metadata["urls"].values() if not url.startswith(ADDRESS)] == []
    assert ("Repository" in metadata["urls"]) is bool(repository)


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("[de]*/**/*.md")), ids=lambda page: page.stem
)
def test_every_relative_link_is_to_a_file_that_is_there(publishing, page):
    text = re.sub(r"\$[^$]*\$|`[^`]*`", "", page.read_text(encoding="utf-8"))  # formulas and code have brackets too
    links = publishing.RELATIVE_LINK.findall(text)
    paths = [page.parent / path.partition("#")[0] for _, _, path in links]
    assert [path for path in paths if not path.exists()] == []


def test_every_python_that_is_named_is_tested_with_one_version_of_each_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3" in line]
    tested = re.findall(r"\bPYTHON=python(3\.\d+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert named == tested
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for python in named:
        pinned = [pin for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": python})]
        assert [name for name, count in Counter(pin.name for pin in pinned).items() if count > 1] == []
        assert {Requirement(line).name for line in project["dependencies"]} <= {pin.name for pin in pinned}
