"""Do the tests notice errors? Plants small ones in the code, one at a time, and runs the tests of what they are in.

    python experiments/mutation/run.py                     what has no outcome yet, package by package: hours
    python experiments/mutation/run.py rl numerics/tree    these packages or modules
    python experiments/mutation/run.py --again rl          what survived there once more, but for the equivalent
    python experiments/mutation/run.py --show rl           the survivors there, each with its line before and after

Needs `pip install cosmic-ray`, which makes the mutants. It can be stopped at any time: each outcome is kept in
outcomes.jsonl as soon as it is there. results.json is written at the end, and by --show.

JAX and the tests take longer to import than most tests to run. So one process imports them, without starting JAX, and
each mutant is tested in a fork of it (forks.py); those outside of functions in a fork that imports the package from a
copy of the tree, and so are survivors with --again.
"""

import argparse
import ast
import datetime
import difflib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# XLA sizes its thread pool by NPROC when JAX is imported, as tests/conftest.py says.
os.environ["NPROC"] = "1"

import gymnasium  # noqa: F401  (what tests import, so that forks have it)
import hypothesis.strategies  # noqa: F401
import jax
import jax.scipy.sparse.linalg
import jaxtyping  # noqa: F401
import optax  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
from beartype import beartype  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from forks import Forks, sort_by_duration

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCE = Path("src/inchworm")
RESULTS, OUTCOMES = HERE / "results.json", HERE / "outcomes.jsonl"
DURATIONS = "durations.txt"

PACKAGES = ("rl", "numerics", "algorithms", "collect", "models")
MORE_TESTS = {
    "numerics/devices": ("tests/test_devices.py",),
    "algorithms/ppo": ("tests/test_planning.py", "tests/faults/test_bad_settings.py"),
    "algorithms/settings": ("tests/test_planning.py", "tests/faults/test_bad_settings.py"),
    "algorithms/policy_gradient": ("tests/faults/test_bad_settings.py",),
    "models/network": (
        "tests/models/test_actor_critic.py",
        "tests/models/test_compute_dtype.py",
        "tests/models/test_recurrent.py",
    ),
    "models/observations": ("tests/algorithms/test_health.py",),
    "models/policy": ("tests/faults/test_misuse.py",),
    "models/settings": ("tests/test_planning.py", "tests/faults/test_bad_settings.py"),
    "rl/distributions": ("tests/models/test_actor_critic.py",),
    "rl/schedules": ("tests/algorithms/test_ppo.py",),
    "collect/tail": ("tests/algorithms/test_returns_alone.py",),
    "collect/collector": ("tests/algorithms/test_returns_alone.py",),
    "collect/graph": ("tests/algorithms/test_returns_alone.py",),
    "collect/host": ("tests/algorithms/test_returns_alone.py",),
    "collect/rollout": ("tests/algorithms/test_returns_alone.py",),
}
"""Beside those of its package, for modules whose tests are elsewhere."""
IN_PROCESSES = ("numerics/devices",)
"""Modules whose tests run it in processes of their own, which forks would not reach."""
OPERATORS = (
    *(f"ReplaceBinaryOperator_{names}" for names in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{names}" for names in ("Mod_Mul", "Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")),
    *(f"ReplaceComparisonOperator_{names}" for names in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceComparisonOperator_{names}" for names in ("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt")),
    *(f"ReplaceComparisonOperator_{names}" for names in ("Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt")),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Invert", "Not")),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop"),
)
"""Each operator's opposite, and each comparison's and its neighbour's, instead of all by all."""


class Mutant(NamedTuple):
    """One error, in one module."""

    module: str
    """As `rl/returns`."""
    name: str
    """Its function and its line before and after, which stay the same when other lines change."""
    code: str
    """The whole module with it."""


def modules(chosen: list[str]) -> list[str]:
    """The modules of the packages, in order; of those chosen if any are, in theirs."""
    found = [
        path.relative_to(ROOT / SOURCE).with_suffix("").as_posix()
        for package in PACKAGES
        for path in sorted((ROOT / SOURCE / package).rglob("*.py"))
        if path.stem != "__init__"
    ]
    if not chosen:
        return found
    return [one for prefix in chosen for one in found if f"{one}/".startswith(f"{prefix}/")]


@cache
def mutants(module: str) -> list[Mutant]:
    """All errors that the operators make of a module; none in annotations, which do nothing."""
    source = (ROOT / SOURCE / f"{module}.py").read_text()
    tree, ignored = get_ast(source), annotations(source)
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        positions = [(tuple(start), node) for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)]
        for occurrence, (start, node) in enumerate(positions):
            # A number is raised and lowered by one; the second of the two says little that the first did not.
            if name == "NumberReplacer" and occurrence % 2:
                continue
            # A star among parameters is no product.
            if node.parent is not None and node.parent.type in ("param", "parameters"):
                continue
            code = mutate_code(source, operator, occurrence)
            if code is None or any(low <= start < high for low, high in ignored) or not compiles(code):
                continue
            line = difference(source, code)
            if "strict=False" in line:  # of zip, which guards against what is not
                continue
            seen[line] += 1
            found.append(Mutant(module, line if seen[line] == 1 else f"{line} ({seen[line]})", code))
    return found


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end."""
    nodes: list[Any] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.arg() | ast.AnnAssign():
                nodes.append(node.annotation)
            case ast.FunctionDef():
                nodes.append(node.returns)
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n is not None]


def compiles(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def difference(source: str, code: str) -> str:
    """The lines that differ, before and after."""
    lines = list(difflib.unified_diff(source.splitlines(), code.splitlines(), n=0))[3:]
    before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return f"{before}  ->  {after}"


def tests_of(module: str) -> list[str]:
    """The test files for a module: its own, those of its package that import from it, and what `MORE_TESTS` names.

    Without any of these, all of its package.
    """
    package, *_, stem = module.split("/")
    holder = ".".join(module.split("/")[:-1])
    names = (f"{holder}.{stem} import", f"{holder} import {stem}", *([f"{holder} import"] if "." in holder else []))
    all_files = [path.relative_to(ROOT) for path in sorted((ROOT / "tests" / package).glob("test_*.py"))]
    files = [
        path.as_posix()
        for path in all_files
        if path.stem == f"test_{stem}" or any(f"from inchworm.{name}" in (ROOT / path).read_text() for name in names)
    ]
    for prefix, more in MORE_TESTS.items():
        files += [one for one in more if f"{module}/".startswith(f"{prefix}/") and one not in files]
    return files or [path.as_posix() for path in all_files]


class QuickestFirst:
    """Sorts the tests by what they take without any error. Programs of mutants are not worth keeping."""

    def __init__(self, durations: Path) -> None:
        self._durations = durations

    def pytest_configure(self) -> None:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        sort_by_duration(items, self._durations)


def start_tests(tree: Path, module: str, plugin: Any) -> int:
    """A process that runs the tests of a module in a tree, up to the first that fails; its exit status is pytest's."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(tree)
    output = os.open(tree / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["PYTHONPATH"] = str(tree / "src")
    sys.path.insert(0, str(tree / "src"))
    status = 3
    try:
        how = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        status = int(pytest.main([*how, *tests_of(module)], [plugin]))
    finally:
        os._exit(status)


def test_in_forks(module: str, waiting: list[Mutant], tree: Path, processes: int) -> None:
    """Tests what `Forks` can of these, and writes to the tree how long tests take without any error."""
    stdout = os.dup(1)

    def tell(index: int, outcome: str, seconds: float) -> None:
        os.write(stdout, note(waiting[index], outcome, seconds).encode())

    path = tree / SOURCE / f"{module}.py"
    forks = Forks(path, [one.code for one in waiting], processes, tree / DURATIONS, tell)
    with mock.patch.object(jax, "devices"):  # the tests' conftest would start JAX, which cannot be forked then
        holder = start_tests(tree, module, forks)
    try:
        _, status = os.waitpid(holder, 0)
    except BaseException:
        os.killpg(holder, signal.SIGTERM)
        raise
    if status:
        raise SystemExit(f"the tests of {module} fail without any error:\n{(tree / 'output.txt').read_text()}")


def note(mutant: Mutant, outcome: str, seconds: float) -> str:
    """Keeps an outcome, and returns it in words."""
    row = {"module": mutant.module, "mutant": mutant.name, "outcome": outcome, "seconds": round(seconds, 1)}
    with OUTCOMES.open("a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return f"{outcome:9}{seconds:6.1f} s  {mutant.module}: {mutant.name}\n"


def copy_tree(tree: Path) -> None:
    for name in ("src", "tests", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)


def put(tree: Path, module: str, code: str) -> None:
    """The module's code, without what Python has compiled of another of the same size and second."""
    path = tree / SOURCE / f"{module}.py"
    path.write_text(code)
    for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        stale.unlink()


class Running(NamedTuple):
    tree: Path
    mutant: Mutant
    started: float


def test_in_trees(module: str, waiting: list[Mutant], trees: list[Path]) -> None:
    """Tests each in a process that imports it from a tree of its own."""
    durations = trees[0] / DURATIONS
    limit = 40.0 + 4.0 * sum(float(line.split(" ", 1)[0]) for line in durations.read_text().splitlines())
    free, running, waiting = list(trees), dict[int, Running](), waiting[::-1]
    try:
        while waiting or running:
            while waiting and free:
                mutant, tree = waiting.pop(), free.pop()
                put(tree, module, mutant.code)
                child = start_tests(tree, module, QuickestFirst(durations))
                running[child] = Running(tree, mutant, time.monotonic())
            time.sleep(0.02)
            for child, (tree, mutant, started) in list(running.items()):
                seconds = time.monotonic() - started
                late = seconds > limit
                if late:
                    os.killpg(child, signal.SIGKILL)
                done, status = os.waitpid(child, 0 if late else os.WNOHANG)
                if done:
                    del running[child]
                    put(tree, module, (ROOT / SOURCE / f"{module}.py").read_text())
                    free.append(tree)
                    print(note(mutant, "timeout" if late else "killed" if status else "survived", seconds), end="")
    finally:
        for child in running:
            os.killpg(child, signal.SIGKILL)


def outcomes() -> dict[tuple[str, str], str]:
    """What is known, by module and mutant; later lines count."""
    lines = OUTCOMES.read_text().splitlines() if OUTCOMES.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["module"], row["mutant"]): row["outcome"] for row in rows}


@cache
def reasons() -> dict[tuple[str, str], str]:
    """Why survivors are left, by module and mutant, as results.json has it."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"survivors": {}}
    return {(m, one["mutant"]): one["reason"] for m, rows in before["survivors"].items() for one in rows}


def write_results() -> None:
    """results.json, from all outcomes of mutants that the code still has; reasons written into it by hand are kept."""
    given, known, table, survivors = reasons(), outcomes(), {}, {}
    for module in modules([]):
        names = [mutant.name for mutant in mutants(module)]
        tested = [name for name in names if (module, name) in known]
        left = [name for name in tested if known[module, name] == "survived"]
        rows = [{"mutant": name, "reason": given.get((module, name), "")} for name in left]
        equivalent = sum(row["reason"].startswith("equivalent") for row in rows)
        table[module] = counts(len(names), len(tested), len(left), equivalent)
        if rows:
            survivors[module] = rows
    packages = {}
    for package in PACKAGES:
        rows = [row for module, row in table.items() if module.startswith(f"{package}/")]
        if rows:
            packages[package] = counts(
                *(sum(row[name] for row in rows) for name in ("mutants", "tested", "survived", "equivalent"))
            )
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    about = {
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": sys.version.split()[0],
        "jax": jax.__version__,
    }
    document = about | {"packages": packages, "modules": table, "survivors": survivors}
    RESULTS.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def counts(mutants: int, tested: int, survived: int, equivalent: int) -> dict[str, Any]:
    killed = tested - survived
    return {
        "mutants": mutants,
        "tested": tested,
        "killed": killed,
        "survived": survived,
        "equivalent": equivalent,
        "score": round(killed / (tested - equivalent), 4) if tested > equivalent else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="packages or modules, as rl or rl/returns; none for all")
    parser.add_argument("--again", action="store_true", help="test survivors once more")
    parser.add_argument("--show", action="store_true", help="print survivors, write results.json, test nothing")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    chosen, known = modules(options.modules), outcomes()
    if options.show:
        for module in chosen:
            for mutant in mutants(module):
                if known.get((module, mutant.name)) == "survived":
                    print(f"{module}: {mutant.name}")
        write_results()
        return

    os.nice(15)
    with tempfile.TemporaryDirectory(prefix="inchworm-mutation-") as folder:
        trees = [Path(folder) / str(index) for index in range(options.processes)]
        for tree in trees:
            copy_tree(tree)
        for module in chosen:
            wanted = {None, "survived"} if options.again else {None}
            waiting = [one for one in mutants(module) if known.get((module, one.name)) in wanted]
            waiting = [one for one in waiting if not reasons().get((module, one.name), "").startswith("equivalent")]
            if waiting:
                slowly = options.again or module in IN_PROCESSES
                test_in_forks(module, [] if slowly else waiting, trees[0], options.processes)
                tested = set() if slowly else outcomes().keys()
                test_in_trees(module, [one for one in waiting if (module, one.name) not in tested], trees)
    write_results()


if __name__ == "__main__":
    main()
