"""The examples in the documentation run as they stand, and what it names is there."""

import pkgutil
import re
from pathlib import Path

import pytest

import inchworm as iw

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MODULES = {path.as_posix(): path for path in Path(iw.__file__).parent.rglob("*.py")}


def module_file(name: str) -> Path | None:
    """The module whose path ends so."""
    return next((path for end, path in MODULES.items() if end.endswith("/" + name)), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_modules_and_names_that_the_documentation_points_to_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    missing = [name for name in re.findall(r"`([\w/]+\.py)`", text) if module_file(name) is None]
    for name in re.findall(r"`((?:iw|inchworm|jax|gymnasium)(?:\.\w+)+)", text):
        try:
            pkgutil.resolve_name(name.replace("iw.", "inchworm."))
        except (ImportError, AttributeError):
            missing.append(name)
    # A table that says where in the code: modules, and names in the module before them.
    for row in re.findall(r"^\|.*\.py`.*\|$", text, flags=re.MULTILINE):
        source = ""
        for name in re.findall(r"`([\w/]+\.py|\w+)`", row.rstrip("| ").rpartition("|")[2]):
            if name.endswith(".py"):
                path = module_file(name)
                source = path.read_text(encoding="utf-8") if path else ""
            elif source and not re.search(rf"^(?:def |class )?{name}\b", source, flags=re.MULTILINE):
                missing.append(name)
    assert missing == []


def test_a_network_of_one_s_own_takes_the_twenty_lines_that_the_documentation_shows(tmp_path, monkeypatch):
    page = (DOCS / "algorithms" / "policies.md").read_text(encoding="utf-8")
    example, *_ = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    train = iw.train

    def train_shortly(env, **settings):
        return train(env, total_steps=1024, evaluation_episodes=1, progress=False, out=tmp_path, **settings)

    monkeypatch.setattr(iw, "train", train_shortly)
    names: dict = {"__name__": "example"}
    exec(compile(example, "policies.md", "exec"), names)
    run = names["run"]
    assert run.policy.model.policy.network.encoder.network.weight.shape == (4, 128)
    again = iw.load(run.folder, network=names["make_network"])
    assert again.policy.act([0.0, 0.0, 0.0, 0.0], deterministic=True) in (0, 1)


def test_a_jax_environment_of_one_s_own_is_learned_as_the_documentation_shows(tmp_path, monkeypatch):
    page = (DOCS / "environments.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "example"}
    with monkeypatch.context() as quiet:
        train = iw.train
        quiet.setattr(iw, "train", lambda *args, **options: train(*args, progress=False, **options))
        exec(compile(example, "environments.md", "exec"), names)
    # From the middle of its starts it takes 6.5 steps, of which all but the last cost 0.02.
    assert names["run"].summary["evaluation_deterministic"]["mean"] > 0.85


def test_runs_are_watched_and_policies_taken_elsewhere_as_the_documentation_shows(tmp_path, monkeypatch):
    page = (DOCS / "runs.md").read_text(encoding="utf-8")
    train = iw.train

    def train_quietly(env, **settings):
        return train(env, evaluation_episodes=0, progress=False, out=tmp_path, **settings)

    monkeypatch.setattr(iw, "train", train_quietly)
    names: dict = {"__name__": "example"}
    for example in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(example, "runs.md", "exec"), names)
    assert names["rows"][0]["mine/share_done"] == names["steps"][0] / 50_000
