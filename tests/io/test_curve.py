"""Learning curves: what is drawn, in which words, and that nothing of the user's own figures changes."""

import os
import subprocess
import sys

import matplotlib
import pytest

from inchworm.errors import ConfigError
from inchworm.io.curve import figure_of, plot_curves, plot_group


def rows(returns, recent=()):
    """A metrics file's rows, 100 steps each; `recent` of the last of them."""
    made = [
        {"env_steps": 100 * index, "episode/return": 2 * value, "episode/return_100": value}
        for index, value in enumerate(returns, 1)
    ]
    for row, value in zip(made[len(made) - len(recent) :], recent, strict=True):
        row["episode/return_recent"] = value
    return made


def drawn(figure):
    """The lines of a figure by their colour and width: their points."""
    (axes,) = figure.axes
    return [(line.get_color(), line.get_linewidth(), list(line.get_ydata())) for line in axes.get_lines()]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_the_bold_curve_is_what_the_policy_earns_now_and_of_the_last_100_episodes_where_that_is_not_known():
    figure = figure_of([("x", rows([1.0, 2.0, 3.0], recent=[8.0, 9.0]))], "CartPole-v1")
    assert drawn(figure) == [("C0", 0.8, [2.0, 4.0, 6.0]), ("C0", 1.8, [1.0, 8.0, 9.0])]
    assert legend(figure) == [
        "episodes of an iteration",
        "recent episodes: the last 10, or those of 1 % of the budget if more",
    ]
    older = figure_of([("x", rows([1.0, 2.0]))], "CartPole-v1")
    assert drawn(older)[1] == ("C0", 1.8, [1.0, 2.0])
    assert legend(older)[1] == "the last 100 episodes"


def test_rows_without_a_return_draw_nothing():
    figure = figure_of([("x", [{"env_steps": 100}])], "CartPole-v1")
    assert drawn(figure) == []
    assert figure.axes[0].get_legend() is None
    assert drawn(figure_of([], "x", [("", [rows([1.0]), []])])) == [("C0", 0.8, [1.0])]


def test_a_group_is_drawn_as_its_runs_their_mean_and_their_deviation_beside_single_runs():
    group = ("y", [rows([1.0, 2.0], recent=[4.0]), rows([3.0, 4.0], recent=[8.0])])
    figure = figure_of([("x", rows([5.0]))], "CartPole-v1", [group])
    assert drawn(figure) == [
        ("C0", 1.8, [5.0]),
        ("C1", 0.8, [1.0, 4.0]),
        ("C1", 0.8, [3.0, 8.0]),
        ("C1", 2.0, [2.0, 6.0]),
    ]
    assert legend(figure) == ["x", "y, mean of 2 seeds ± deviation"]
    assert figure.axes[0].get_ylabel() == "return, mean of recent episodes"
    assert legend(figure_of([], "CartPole-v1", [("", group[1])])) == ["mean of 2 seeds ± deviation"]
    older = figure_of([("x", rows([5.0])), ("y", rows([5.0]))], "CartPole-v1")
    assert older.axes[0].get_ylabel() == "return, mean of the last 100 episodes"
    (band,) = figure.axes[0].collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert (low, high) == (1.0, 8.0)  # 2 - 1 and 6 + 2


@pytest.mark.parametrize("name", ["_x", "a $b$ c_d", "$", "$\\nonsense{$"])
def test_names_are_drawn_as_they_are(tmp_path, name):
    figure = figure_of([(name, rows([1.0])), ("y", rows([2.0]))], name)
    assert legend(figure) == [name, "y"]
    assert figure.axes[0].get_title() == name
    assert not figure.axes[0].title.get_parse_math()
    assert not any(text.get_parse_math() for text in figure.axes[0].get_legend().get_texts())
    plot_curves([(name, rows([1.0])), ("y", rows([2.0]))], tmp_path / "curve.svg", name)


def test_backend_settings_and_open_figures_stay_the_user_s(tmp_path):
    from matplotlib import pyplot

    pyplot.switch_backend("svg")
    own = pyplot.figure()
    before = dict(matplotlib.rcParams)
    plot_curves([("", rows([1.0]))], tmp_path / "curve.png", "x")
    plot_group([rows([1.0]), rows([2.0])], tmp_path / "group.pdf", "x")
    assert matplotlib.get_backend() == "svg"
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == [own.number]
    pyplot.close(own)


def test_a_backend_that_is_not_installed_does_not_matter(tmp_path):
    code = f"""
import os, sys
from pathlib import Path
from inchworm.io.curve import plot_curves
plot_curves([], Path({str(tmp_path / "curve.png")!r}), "x")
assert os.environ["MPLBACKEND"] == "nope"
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = os.environ | {"MPLBACKEND": "nope", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_a_picture_that_cannot_be_drawn_leaves_the_one_before(tmp_path):
    path = tmp_path / "curve.png"
    path.write_bytes(b"before")
    with pytest.raises(TypeError):
        plot_curves([("", [{"env_steps": 100, "episode/return": {}}])], path, "x")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="has no ending"):
        plot_curves([], tmp_path / "curve.txt", "x")
