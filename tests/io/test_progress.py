"""The line that tells how training goes."""

import io
import re
import sys

import pytest

from inchworm.io.progress import GroupProgress, ProgressLine, say
from inchworm.io.words import format_return


class Screen(io.StringIO):
    """A terminal that keeps what it was sent."""

    def isatty(self):
        return True


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


def shown(screen):
    """The texts between the codes that move the cursor."""
    return [part for part in re.split(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\n]", screen.getvalue()) if part.strip()]


def test_the_line_is_cut_to_a_terminal_s_width_and_leaves_nothing_behind(narrow):
    line = ProgressLine(1_000_000, stream=narrow)
    for iteration in range(1, 4):
        line.update(100_000 * iteration, 10.0 * iteration, 1234.5)
        line._last = 0.0
    line.close()
    assert len(set(shown(narrow))) == 3
    assert max(map(len, shown(narrow))) <= 40
    assert "return 1,234.5" in shown(narrow)[-1], "what counts most comes first"
    assert narrow.getvalue().endswith("\x1b[2K"), "the line is wiped, and what is printed next begins where it began"


def test_what_is_printed_meanwhile_comes_out_as_it_is_where_it_is_sent_and_not_beside_the_line(narrow, monkeypatch):
    for stdout in (narrow, io.StringIO()):
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", stdout)
            line = ProgressLine(100, stream=narrow)
            line.note("compiling")
            print("hel", end="")
            line._noting = False
            line.note("still compiling")
            print("lo " * 40)
            line.note("compiled")
            line.close()
            assert sys.stdout is stdout
        assert stdout.getvalue().count("lo ") >= 40
    sent = narrow.getvalue()
    assert "compiling\r\x1b[2Khel" in sent, "the line is wiped before"
    assert "still compiling" not in sent.partition("lo lo")[0], "and not drawn into a line of the user's own"


def test_a_stream_that_does_not_say_what_it_is_ends_no_training(monkeypatch):
    class Tee:
        def write(self, text): ...

        def flush(self): ...

    for stream in (Tee(), None):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr("sys.stdout", Tee())
        say("PPO on CartPole-v1")
        line = ProgressLine(100)
        line.note("compiling")
        line.update(100, 1.0, 1.0)
        line.close()


def test_a_terminal_that_is_gone_is_given_up_and_the_streams_are_given_back(narrow, monkeypatch):
    class Gone(Screen):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stdout", narrow)
    line = ProgressLine(100, stream=Gone())
    line.note("compiling")
    assert sys.stdout is narrow
    line.update(100, 1.0, 1.0)
    line.close()


def test_a_training_within_another_leaves_the_streams_as_they_were(narrow, monkeypatch):
    monkeypatch.setattr("sys.stdout", narrow)
    outer = ProgressLine(100, stream=narrow)
    inner = ProgressLine(100, stream=sys.stdout)
    inner.note("inner")
    inner.close()
    outer.note("outer")
    assert "outer" in narrow.getvalue()
    outer.close()
    assert sys.stdout is narrow


def test_the_time_left_goes_by_the_recent_rate_and_not_by_the_time_that_compiling_took():
    stream = io.StringIO()
    line = ProgressLine(100_000, stream=stream)
    line.update(1_000, 30.0, None)
    assert "left" not in stream.getvalue(), "one call says nothing of the rate: it compiled"
    for seconds in range(1, 50):
        line._last = 0.0
        line.update(1_000 + 1_000 * seconds, 30.0 + seconds, None)
    assert "0:50 left  1,000 steps/s  50,000 / 100,000 steps" in stream.getvalue()


def test_the_time_left_is_never_more_than_the_run_may_take():
    stream = io.StringIO()
    line = ProgressLine(10**9, max_seconds=60.0, seconds=100.0, stream=stream)
    for seconds in (110.0, 120.0):
        line._last = 0.0
        line.update(int(1000 * seconds), seconds, 1.0)
    assert "0:40 left" in stream.getvalue()


def test_a_file_gets_the_first_line_one_every_ten_seconds_and_the_last(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    line = ProgressLine(1_000, stream=stream)
    line.note("compiling")
    for second in range(35):
        now[0] = float(second)
        line.update(20 * (second + 1), now[0], 1.0)
    line.note("evaluation")
    line.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "compiling"
    assert [re.findall(r"(\d+) / 1,000", line)[0] for line in lines[1:-1]] == ["220", "420", "620", "700"]
    assert lines[-1] == "evaluation"


def test_a_line_that_cannot_be_written_is_given_up():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    line = ProgressLine(100, stream=Full())
    line.note("compiling")
    line.update(100, 1.0, 1.0)
    line.close()


def test_a_notebook_s_output_is_rewritten(monkeypatch):
    outputs = []

    class Handle:
        def update(self, data, raw):
            outputs[-1] = data["text/plain"]

    def display(data, raw, display_id):
        outputs.append(data["text/plain"])
        return Handle()

    monkeypatch.setattr("inchworm.io.progress._notebook_display", lambda: display)
    line = ProgressLine(100)
    line.note("compiling")
    line.update(100, 1.0, 2.0)
    line.close()
    assert len(outputs) == 1
    assert outputs[0].startswith("100 %  return 2")


def test_several_runs_share_a_line(capsys):
    group = GroupProgress(2, 100, None, True)
    group.tell(0, 100, 3.0)
    group.tell(1, 100, None)
    group.close()
    assert "100 %  return 3 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.93, "0.93"),
        (-0.0512, "-0.0512"),
        (9.5, "9.5"),
        (12.34, "12.3"),
        (-1234.5, "-1,234.5"),
    ],
)
def test_returns_have_as_many_digits_as_tell_them_apart(value, text):
    assert format_return(value) == text
