"""`inchworm completion SHELL`."""

import argparse
import importlib
from dataclasses import dataclass
from typing import Annotated

import shtab

from inchworm.cli.main import COMMANDS
from inchworm.cli.options import Argument, Choices, Option, options_of, read_options
from inchworm.cli.train import groups
from inchworm.config import ALGORITHMS


@dataclass(frozen=True, kw_only=True)
class Options:
    """Prints what makes a shell complete commands, their options, and the choices of these.

    bash: put `source <(inchworm completion bash)` into ~/.bashrc, or, so that no shell has to wait for it, write it
    with `inchworm completion bash > ~/.inchworm.bash` and put `source ~/.inchworm.bash` there.

    zsh: `inchworm completion zsh > ~/.zfunc/_inchworm`, in a folder that `fpath` in ~/.zshrc names above `compinit`.

    tcsh: `inchworm completion tcsh > ~/.inchworm.tcsh`, and `source ~/.inchworm.tcsh` in ~/.tcshrc.

    What is written should be written anew after an update of Inchworm.
    """

    shell: Annotated[str, Argument("SHELL"), Choices(("bash", "zsh", "tcsh"))]
    """Whose language it is printed in."""


def main(arguments: list[str]) -> int:
    shell = read_options("completion", Options, arguments).shell
    parser = argparse.ArgumentParser("inchworm")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for name, about in COMMANDS.items():
        module = importlib.import_module(f"inchworm.cli.{name}")
        # Those of all algorithms: which of them it is may stand behind the option that is completed.
        of_command = groups(*ALGORITHMS.values()) if name == "train" else {"": [module.Options]}
        command = commands.add_parser(name, help=about)
        for option in (option for group in options_of(of_command).values() for option in group):
            _add(command, option)
    print(shtab.complete(parser, shell))
    return 0


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    """Puts an option into a parser that shtab reads."""
    names = option.flags if option.argument is None else (option.field,)
    about = option.about.partition(".")[0].replace("%", "%%")
    if not option.shown:
        action = parser.add_argument(*names, action="store_true", help=about)
    else:
        nargs = "*" if option.several else None
        action = parser.add_argument(*names, choices=option.choices or None, nargs=nargs, help=about)
    if option.argument == "RUN":
        action.complete = shtab.DIRECTORY  # pyright: ignore[reportAttributeAccessIssue]
    elif option.is_path:
        action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
