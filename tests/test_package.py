"""The package as a whole: its public names, and what importing it costs and needs."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import inchworm

HEAVY = {"jax", "numpy", "gymnasium", "optax", "matplotlib"}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a program does in a process of its own."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_no_public_name_hides_a_module_of_the_same_name():
    modules = [module.name for module in pkgutil.walk_packages(inchworm.__path__, "inchworm.")]
    hidden = []
    for name in modules:
        if name != "inchworm.__main__":
            package, _, last = name.rpartition(".")
            module = importlib.import_module(name)
            if getattr(importlib.import_module(package), last) is not module:
                hidden.append(name)
    assert hidden == []


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_the_command_tells_its_version_and_its_usage_without_loading_what_trains(arguments):
    code = (
        "import sys; from inchworm.cli.main import main; status = main(sys.argv[1:]); import inchworm;"
        f"print('loaded', sorted({HEAVY} & set(sys.modules))); sys.exit(status)"
    )
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_every_public_name_is_found_when_it_is_asked_for_and_listed_before():
    code = (
        "import sys, inchworm; names = inchworm.__all__; assert 'jax' not in sys.modules;"
        "assert not set(names) - set(dir(inchworm)); assert '__version__' in dir(inchworm);"
        "values = [getattr(inchworm, name) for name in names];"
        "assert [value.__name__ for value in values if hasattr(value, '__name__')] ==\\\n"
        "    [name for name in names if name != 'PRESETS'];"
        "from inchworm import *; assert train is inchworm.train;"
        "import inchworm.errors; from inchworm import spaces, train_seeds"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_type_checkers_are_told_the_places_where_names_are_found():
    tree = ast.parse(Path(inchworm.__file__).read_text(encoding="utf-8"))
    (told,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.name: node.module for node in told.body for alias in node.names}
    assert imported == inchworm._PLACES
    assert sorted(inchworm.__all__) == sorted(imported)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'inchworm' has no attribute 'trian'"):
        inchworm.trian  # noqa: B018


def test_importing_the_package_on_windows_says_in_one_sentence_that_it_does_not_run_there():
    done = python("import sys; sys.platform = 'win32'; import inchworm")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: Inchworm runs on Linux and macOS, and on Windows inside WSL: it needs POSIX files and signals."
    )


def test_modules_are_attributes_of_the_package_whether_they_were_imported_or_not():
    script = "import inchworm as iw; assert iw.errors.ConfigError; assert iw.spaces.Box; assert 'sys' not in dir(iw)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr == ""
