"""Checks of settings: what a wrong value is shown as, and what is asked for instead."""

import pytest

from inchworm.checks import check_flag, check_integer, check_number, read_integer
from inchworm.errors import ConfigError


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_number("x", "5", above=0.0), "x = '5': is not a number. Give a finite number above 0."),
        (lambda: check_integer("x", "5", 1), "x = '5': is not a whole number. Give an integer of at least 1."),
        (lambda: check_integer("x", 6, 1, 5), "x = 6: is out of range. Give an integer between 1 and 5."),
        (lambda: check_flag("x", "True"), "x = 'True': is neither true nor false. Give True or False."),
    ],
)
def test_a_text_in_a_number_s_place_is_shown_in_quotes(check, message):
    with pytest.raises(ConfigError) as error:
        check()
    assert str(error.value) == message


@pytest.mark.parametrize(("text", "number"), [("2048", 2048), ("-3", -3), ("1e6", 1_000_000), ("2.5E+4", 25_000)])
def test_a_whole_number_may_have_an_exponent(text, number):
    assert read_integer(text) == number


@pytest.mark.parametrize("text", ["", "2.5", "2.5e0", "1e-3", "1e1000000000", "many"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="no whole number"):
        read_integer(text)
