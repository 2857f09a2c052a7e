"""`inchworm COMMAND ...`: finds the command, and turns errors into one readable paragraph."""

import importlib
import os
import sys
import traceback
import warnings
from importlib.metadata import version
from typing import Any

from inchworm.cli.streams import forgiving, give_up_broken
from inchworm.errors import InchwormError
from inchworm.suggestions import did_you_mean
from inchworm.warning import complain, plain, show

COMMANDS = {
    "train": "train a policy in an environment",
    "resume": "go on with a stopped run, as if it had never stopped",
    "evaluate": "returns of a run's policy over whole episodes",
    "record": "a video of a run's policy",
    "plot": "learning curves of one or more runs",
    "check": "look at an environment before training in it",
    "doctor": "what is wrong with a run, or with the installation",
    "inspect": "what is in a checkpoint or a policy",
    "completion": "make a shell complete all of these, with their options",
}

USAGE = """usage: inchworm COMMAND [arguments]      inchworm COMMAND --help

Trains policies with PPO (arXiv:1707.06347), TRPO, A2C or REINFORCE.

{commands}

  inchworm train HalfCheetah-v5                   as in the paper
  inchworm train CartPole-v1 --total-steps 5e4    any Gymnasium environment
  inchworm train my_module:make_env               your own
  inchworm evaluate runs/HalfCheetah-v5/ppo/...   training ends with its folder

Every command takes --debug, which shows the traceback of an error.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        Exit status: 0 done, 1 nobody reads the output any more, 2 wrong input, 130 and 143 stopped by Ctrl-C and
        SIGTERM, after everything was saved.
    """
    forgiving(sys.stdout)
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        give_up_broken(sys.stdout, sys.stderr)
        return 1
    except OSError as error:
        if "--debug" in (sys.argv[1:] if arguments is None else arguments):
            raise
        give_up_broken(sys.stdout)
        complain(f"error: {error}")
        return 1


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(len(name) for name in COMMANDS)
        print(USAGE.format(commands="\n".join(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items())))
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"inchworm {version('inchworm')}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        complain(f"error: {command} is no command{did_you_mean(command, COMMANDS)}. See inchworm --help.")
        return 2
    try:
        here = os.getcwd()
    except FileNotFoundError:
        complain("error: the current folder is not there any more. Go to one that is.")
        return 2
    if any(":" in word for word in arguments):
        # A user's own module:factory is looked for where the command is run, after all that is installed, so that no
        # file there takes the place of a package.
        sys.path.append(here)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_in_full if debug else show
            return importlib.import_module(f"inchworm.cli.{command}").main(arguments[1:])
    except InchwormError as error:
        if debug:
            print(plain(traceback.format_exc()), end="", file=sys.stderr)
        else:
            # What a renderer or a simulator that failed leaves behind complains once more when it is collected.
            sys.unraisablehook = lambda _: None
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130


def _show_in_full(message: Any, category: type, filename: str, lineno: int, *_: Any, **__: Any) -> None:
    print(plain(warnings.formatwarning(message, category, filename, lineno)), end="", file=sys.stderr)
