"""The package as a whole: its public names, and what importing it costs."""

import importlib
import pkgutil

import inchworm


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
