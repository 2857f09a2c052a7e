"""Checks of settings, made when a setting is made; each raises `ConfigError`."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from inchworm.errors import ConfigError
from inchworm.suggestions import OF_TRAINING, did_you_mean


def check_integer(field: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """The value as `int`, which may be written as 1e6, or `ConfigError` if it is not a whole number in the range."""
    span = f"of at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
    whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise ConfigError(field, repr(value), "is not a whole number", f"Give an integer {span}.")
    number = int(value)
    if number < minimum or (maximum is not None and number > maximum):
        raise ConfigError(field, value, "is out of range", f"Give an integer {span}.")
    return number


def read_integer(text: str) -> int:
    """The whole number that a text stands for, which may have an exponent, as 1e6; `ValueError` if it is none."""
    try:
        return int(text)
    except ValueError:
        number = Decimal(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?e\+?[0-9]{1,2}", text, re.IGNORECASE) else None
        if number is None or number != int(number):
            raise ValueError(f"{text} is no whole number") from None
        return int(number)


def check_number(
    field: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> float:
    """The value as `float`, or `ConfigError` if it is not finite or not in the range."""
    limits = [
        f"above {above:g}" if above is not None else "",
        f"at least {minimum:g}" if minimum is not None else "",
        f"at most {maximum:g}" if maximum is not None else "",
    ]
    fix = "Give a finite number" + " ".join([""] + [limit for limit in limits if limit]) + "."
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(field, repr(value), "is not a number", fix)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(field, value, "is not finite", fix)
    too_low = (above is not None and number <= above) or (minimum is not None and number < minimum)
    if too_low or (maximum is not None and number > maximum):
        raise ConfigError(field, value, "is out of range", fix)
    return number


def check_flag(field: str, value: Any) -> bool:
    """The value, or `ConfigError` if it is not True or False."""
    if not isinstance(value, bool):
        raise ConfigError(field, repr(value), "is neither true nor false", "Give True or False.")
    return value


def check_choice(field: str, value: Any, choices: Iterable[str]) -> str:
    """The value, or `ConfigError` if it is none of the choices."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(
            field,
            value,
            "is not one of the choices" + did_you_mean(str(value), choices),
            "Choose one of " + ", ".join(choices) + ".",
        )
    return value


def check_known(settings: Mapping[str, Any], cls: type) -> None:
    """`ConfigError` for a setting that the dataclass does not have, with what may be meant."""
    known = [field.name for field in dataclasses.fields(cls)]
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(
                name,
                value,
                f"is not a setting of {cls.__name__}"
                + did_you_mean(name, [*known, *(one for one in OF_TRAINING if one != name)]),
                f"Its settings are {', '.join(known)}.",
            )


def check_path(field: str, value: Any) -> Path:
    """The value as `Path`, or `ConfigError` if it is neither text nor a path."""
    if not isinstance(value, str | Path):
        raise ConfigError(field, value, "is no path", "Give a text or a pathlib.Path.")
    return Path(value)


def check_output(field: str, path: Path, endings: tuple[str, ...]) -> None:
    """`ConfigError` unless a file of one of these kinds can be written there."""
    if path.suffix.lower() not in endings:
        raise ConfigError(field, str(path), "has no ending that can be written", f"Use {' or '.join(endings)}.")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(field, str(path), "is a folder, or in none", "Name a file in a folder that is there.")


def check_hashable(field: str, value: Any) -> None:
    """`ConfigError` if the value, which compiled programs are kept by, cannot be hashed."""
    try:
        hash(value)
    except TypeError as error:
        raise ConfigError(
            field,
            type(value).__name__,
            "cannot be hashed, and compiled programs are kept by it",
            "Make it a function, or a dataclass(frozen=True).",
        ) from error
