"""What the package never does, by its syntax trees: no load path can run what a file says."""

import ast
from pathlib import Path

import pytest

import inchworm

PACKAGE = Path(inchworm.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
RUNNING = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "code", "ctypes"}
CALLS = {"eval", "exec", "compile", "__import__", "load_module", "exec_module", "import_module", "system", "popen"}
ALLOWED = {
    ("__init__.py", "import_module"): "public names, from a table",
    ("cli/main.py", "import_module"): "commands, from a table",
    ("cli/completion.py", "import_module"): "commands, from the same table",
    ("envs/mujoco_warnings.py", "exec_module"): "MuJoCo's own, when it is imported",
    ("envs/making.py", "import_module"): "module:factory, which the user has typed",
    ("workers.py", "import_module"): "a function's own module, told by the parent process",
    ("workers.py", "exec_module"): "the script that the parent process was started with",
}


def imported(node):
    match node:
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module.partition(".")[0]]
    return []


def called(node):
    match node:
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return name
    return None


def faults(tree):
    """What a module imports or calls that could run what a file says."""
    for node in ast.walk(tree):
        yield from RUNNING.intersection(imported(node))
        if (name := called(node)) in CALLS and not is_of_re(node):
            yield name
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            yield node.arg


def is_of_re(node):
    """`re.compile` compiles no Python."""
    return isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", None) == "re"


def test_no_module_runs_what_a_file_says():
    found = {(name, fault) for name, tree in MODULES.items() for fault in faults(tree)}
    assert found == ALLOWED.keys()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval('1')",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "importlib.import_module(name)",
        "os.system(text)",
    ],
)
def test_the_guard_would_bark(code):
    assert list(faults(ast.parse(code)))


def test_files_of_runs_are_opened_in_one_place():
    opening = {
        name
        for name, tree in MODULES.items()
        if name.startswith("io/")
        for node in ast.walk(tree)
        if called(node) in ("open", "read_text", "read_bytes", "write_text", "write_bytes")
    }
    # Loggers, policies and checkpoints open folders and what files.py has opened for them; provenance.py reads
    # /proc/cpuinfo, words.py the curve that a notebook shows.
    readers = {"loggers", "policy_file", "checkpoint", "provenance", "words"}
    assert opening <= {"io/files.py", *(f"io/{name}.py" for name in readers)}
