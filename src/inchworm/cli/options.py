"""The options of the commands, derived from dataclasses.

A field is an option: its docstring is the help, its type says what is read and how the value is shown. What a command
line names is read once, and nothing else is filled in, so that a command can tell what was asked for.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

from inchworm.checks import check_choice, read_integer
from inchworm.errors import ConfigError
from inchworm.suggestions import did_you_mean

T = TypeVar("T")

Groups = Mapping[str, Sequence[type]]
"""Dataclasses by the title under which a help shows their fields; a field that several have belongs to the first."""

UNBROKEN = "\N{NO-BREAK SPACE}"

MOST_COLUMNS = 100
"""A help is no wider, however wide the terminal is."""


@dataclass(frozen=True)
class Argument:
    """In an `Annotated` type: the field is no option but the words that belong to none, shown by this name."""

    name: str


@dataclass(frozen=True)
class Choices:
    """In an `Annotated` type: the words that a text can be."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Option:
    """A field of a dataclass as the command line sees it."""

    field: str
    about: str
    shown: str
    """Its value in a help: INT, {tanh,relu}; nothing for a flag."""
    read: Callable[[str], Any]
    """The value of a word; raises `ConfigError`, or `ValueError` with the end of a sentence."""
    default: Any
    fix: str = ""
    """What to give in place of a word that cannot be read."""
    argument: str | None = None
    """Its name, if it is no option but the words that belong to none."""
    several: bool = False
    """Takes any number of words."""
    choices: tuple[str, ...] = ()
    is_path: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """How it is written; for a flag both ways."""
        name = self.field.replace("_", "-")
        return (f"--{name}",) if self.shown else (f"--{name}", f"--no-{name}")


def options_of(groups: Groups) -> dict[str, list[Option]]:
    """The options of the groups; a field that a class takes over from another stands with the other."""
    seen: set[str] = set()
    options: dict[str, list[Option]] = {}
    for title, classes in groups.items():
        options[title] = []
        for cls in classes:
            for field in dataclasses.fields(cls):
                if field.name not in seen:
                    seen.add(field.name)
                    options[title].append(_option(cls, field))
    return options


def read(command: str, groups: Groups, words: Sequence[str]) -> dict[str, Any]:
    """What the words of a command line name, by field, and `help` if they ask for it.

    Options are written with hyphens or underscores; of one that is given twice the last counts.

    Raises:
        ConfigError: an option is unknown, a value missing or of the wrong form.
    """
    options = [option for group in options_of(groups).values() for option in group]
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("free_words", nargs="*")
    for option in options:
        if option.argument is not None:
            continue
        if option.shown:
            parser.add_argument(*option.flags, dest=option.field, nargs="*" if option.several else None)
        else:
            parser.add_argument(option.flags[0], dest=option.field, action="store_true")
            parser.add_argument(option.flags[1], dest=option.field, action="store_false")
    try:
        found, left = parser.parse_known_args(_uniform(words))
    except argparse.ArgumentError as error:
        flag = str(error.argument_name).split("/")[0]
        takes_value = all(flag not in option.flags for option in options if not option.shown)
        problem = "has no value" if takes_value else "takes no value"
        raise ConfigError("option", flag, problem, _see(command)) from error
    named = vars(found)
    if "--" in left:
        left.remove("--")
    for word in left:
        if word.startswith("-"):
            _refuse_option(command, word.partition("=")[0], options)
    free = [*named.pop("free_words", []), *left]
    values = {option.field: _value(option, named[option.field]) for option in options if option.field in named}
    arguments = [option for option in options if option.argument is not None]
    if "help" in named:
        return values | _arguments(command, arguments[: len(free)], free) | {"help": True}
    return values | _arguments(command, arguments, free)


def read_options(command: str, cls: type[T], words: Sequence[str]) -> T:
    """The options of a command that has one group of them.

    Raises:
        ConfigError: as `read`.
        SystemExit: the words ask for help, and it was printed.
    """
    groups = {"options": [cls]}
    values = read(command, groups, words)
    if values.pop("help", False):
        print(help_page(command, inspect.getdoc(cls) or "", groups))
        raise SystemExit(0)
    return cls(**values)


def help_page(command: str, about: str, groups: Groups, defaults: Mapping[str, Any] | None = None) -> str:
    """The help of a command.

    Args:
        command: its name.
        about: what it does, in paragraphs.
        groups: its options.
        defaults: those that differ from the dataclasses', by field.
    """
    width = min(max(shutil.get_terminal_size().columns, 40), MOST_COLUMNS)
    options = options_of(groups)
    arguments = [option for group in options.values() for option in group if option.argument is not None]
    parts = [f"usage: {_usage(command, arguments)}"]
    parts += [textwrap.fill(" ".join(paragraph.split()), width) for paragraph in about.split("\n\n")]
    parts.append("\n".join(_entry(option, width, option.default) for option in arguments))
    for title, group in options.items():
        rows = [
            _entry(option, width, (defaults or {}).get(option.field, option.default))
            for option in group
            if option.argument is None
        ]
        parts.append("\n".join([f"{title}:", *rows]))
    parts[-1] += f"\n{_row('-h, --help', 'Show this page.', width)}"
    return "\n\n".join(part for part in parts if part)


def _entry(option: Option, width: int, default: Any) -> str:
    heading = option.argument or ", ".join(option.flags)
    if option.argument is None and option.shown:
        heading += f" {option.shown}"
    text = option.about
    if (told := _shown_default(option, default)) is not None:
        text = f"{text.rstrip('.')}. Default:{UNBROKEN}{told}."
    return _row(heading, text, width)


def _row(heading: str, text: str, width: int) -> str:
    return f"  {heading}\n" + textwrap.fill(
        text,
        width,
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
        break_on_hyphens=False,
        break_long_words=False,
    ).replace(UNBROKEN, " ")


def _shown_default(option: Option, default: Any) -> str | None:
    """A default as it would be written; None where there is none, or where the help says what comes in its place."""
    if default is dataclasses.MISSING or (default is None and "by default" in option.about):
        return None
    if not option.shown:
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or None
    if isinstance(default, dict):
        return json.dumps(default)
    return "none" if default is None else str(default)


def _usage(command: str, arguments: Sequence[Option]) -> str:
    names = []
    for one in arguments:
        name = f"{one.argument} [{one.argument} ...]" if one.several else str(one.argument)
        names.append(name if one.default is dataclasses.MISSING else f"[{name}]")
    return " ".join(["inchworm", command, *names, "[options]"])


def _see(command: str) -> str:
    return f"`inchworm {command} --help` shows what it takes."


def _uniform(words: Sequence[str]) -> list[str]:
    """Options with hyphens for underscores, and negative numbers so that they are not taken for options."""
    uniform = []
    for index, word in enumerate(words):
        if word == "--":
            return [*uniform, *words[index:]]
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            word = name.replace("_", "-") + equals + value
        elif re.match(r"-\.?[0-9]", word):
            word = " " + word
        uniform.append(word)
    return uniform


def _refuse_option(command: str, word: str, options: Sequence[Option]) -> NoReturn:
    known = [flag for option in options if option.argument is None for flag in option.flags]
    problem = f"is no option of `inchworm {command}`" + did_you_mean(word, known)
    for option in options:
        if option.argument is not None and word == option.flags[0]:
            problem = f"is no option: {option.argument} is a word of its own"
    raise ConfigError("option", word, problem, _see(command))


def _arguments(command: str, arguments: Sequence[Option], words: list[str]) -> dict[str, Any]:
    """The values of what is no option; the last argument may take several words."""
    values: dict[str, Any] = {}
    for argument in arguments:
        if not words and argument.default is not dataclasses.MISSING:
            continue
        if not words:
            raise ConfigError(
                "arguments", "none", f"{argument.argument} is missing", f"Usage: {_usage(command, arguments)}."
            )
        taken, words = (words, []) if argument.several else (words[:1], words[1:])
        values[argument.field] = _value(argument, taken if argument.several else taken[0])
    if words:
        taken = "nothing" if not arguments else f"one {arguments[-1].argument}"
        raise ConfigError("arguments", " ".join(words).strip(), f"are too many, it takes {taken}", _see(command))
    return values


def _value(option: Option, found: Any) -> Any:
    if isinstance(found, bool):
        return found
    if isinstance(found, list):
        return tuple(_read(option, word) for word in found)
    return _read(option, found)


def _read(option: Option, word: str) -> Any:
    word = word[1:] if re.match(r" -\.?[0-9]", word) else word
    try:
        return option.read(word)
    except ValueError as error:
        fix = option.fix + (" A list ends where an option begins, or with `--`." if option.several else "")
        raise ConfigError(option.field, word, str(error).removeprefix(word).strip(), fix) from error


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`none` is written in small letters or large."""
    return lambda word: None if word.lower() == "none" else read(word)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word} is no number") from None


def _json_object(word: str) -> dict[str, Any]:
    try:
        value = json.loads(word)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{word} is no JSON object")
    return value


FORMS: dict[type, dict[str, Any]] = {
    bool: {"shown": "", "read": bool},
    int: {"shown": "INT", "read": read_integer, "fix": "Give a whole number, as 1000 or 1e6."},
    float: {"shown": "NUMBER", "read": _number, "fix": "Give a number, as 0.5 or 1e-3."},
    str: {"shown": "TEXT", "read": str},
    Path: {"shown": "PATH", "read": Path, "is_path": True},
    dict: {"shown": "JSON", "read": _json_object, "fix": "Give e.g. '{\"forward_reward_weight\": 2.0}'."},
}
"""How values of a type are shown and read."""


def _option(cls: type, field: dataclasses.Field) -> Option:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return Option(field.name, _about(cls, field.name), default=default, **_form(field.name, field.type))


def _form(field: str, kind: Any) -> dict[str, Any]:
    """What a type says about an option: the remaining attributes of `Option`."""
    notes: Sequence[Any] = ()
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
    parts = set(get_args(kind))
    form: dict[str, Any] = {}
    for note in notes:
        if isinstance(note, Argument):
            form |= {"argument": note.name}
        elif isinstance(note, Choices):
            return form | _choices(field, note.words)
    if get_origin(kind) is tuple:
        inner = _form(field, get_args(kind)[0])
        return inner | form | {"several": True, "shown": f"{inner['shown']} ..."}
    if get_origin(kind) is Literal:
        return form | _choices(field, get_args(kind))
    if {float, str} <= parts:  # a schedule, or the text of one
        words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
        shown = "|".join(["NUMBER", "linear:A:B", *words, *(["none"] if NoneType in parts else [])])
        # The settings' own checks judge the text.
        return form | {"shown": shown, "read": _or_none(str) if NoneType in parts else str, "choices": tuple(words)}
    if NoneType in parts:
        (kind,) = parts - {NoneType}
        inner = _form(field, kind)
        if kind in (int, float):
            return inner | form | {"shown": f"{inner['shown']}|none", "read": _or_none(inner["read"])}
        return inner | form
    return form | FORMS[dict if get_origin(kind) is dict else kind]


def _choices(field: str, words: tuple[str, ...]) -> dict[str, Any]:
    shown = "{" + ",".join(words) + "}"
    return {"shown": shown, "read": lambda word: check_choice(field, word, words), "choices": words}


def _about(cls: type, field: str) -> str:
    """The docstring under a field, in the class that is nearest."""
    for one in cls.__mro__:
        if dataclasses.is_dataclass(one) and (about := _docstrings(one).get(field)):
            return " ".join(about.split())
    return ""


@cache
def _docstrings(cls: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: text.value.value
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
