"""`inchworm completion SHELL`."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from inchworm.cli.main import COMMANDS
from inchworm.cli.options import Argument, Choices, Groups, Option, options_of, read_options
from inchworm.cli.train import Options as TrainOptions
from inchworm.cli.train import groups
from inchworm.config import ALGORITHMS


@dataclass(frozen=True, kw_only=True)
class Options:
    """Prints what makes a shell complete commands, their options, and the choices of these.

    bash: put `source <(inchworm completion bash)` into ~/.bashrc, or, so that no shell has to wait for it, write it
    with `inchworm completion bash > ~/.inchworm.bash` and put `source ~/.inchworm.bash` there.

    zsh: `inchworm completion zsh > ~/.inchworm.zsh`, and `source ~/.inchworm.zsh` below `compinit` in ~/.zshrc.

    fish: `inchworm completion fish > ~/.config/fish/completions/inchworm.fish`.

    What is written should be written anew after an update of Inchworm.
    """

    shell: Annotated[str, Argument("SHELL"), Choices(("bash", "zsh", "fish"))]
    """Whose language it is printed in: bash, zsh or fish."""


def main(arguments: list[str]) -> int:
    shell = read_options("completion", Options, arguments).shell
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]())
    return 0


def _cases() -> dict[str, list[Option]]:
    """What can follow a command; for training after each algorithm, as `train:trpo`."""
    cases = {f"train:{name}": _flat(groups(kind)) for name, kind in ALGORITHMS.items()}
    for name in (name for name in COMMANDS if name != "train"):
        cases[name] = _flat({"": [importlib.import_module(f"inchworm.cli.{name}").Options]})
    return cases


def _flat(options: Groups) -> list[Option]:
    return [option for group in options_of(options).values() for option in group]


def _offered(option: Option) -> str:
    """A call of the shell function that offers an option's values, or nothing where they are free."""
    if option.argument == "RUN":
        return "_inchworm_folders"
    if option.is_path:
        return "_inchworm_files"
    return f"_inchworm_words {' '.join(option.choices)}" if option.choices else ":"


def _function() -> str:
    """A function in what bash and zsh have in common, which offers what can stand in a place.

    Its arguments are the word to complete, the word before, and all words after the program's name. It calls functions
    of the shell's own.
    """
    cases = _cases()
    with_value = [option for case in cases.values() for option in case if option.shown and not option.argument]
    values = {option.flags[0]: _offered(option) for option in with_value}
    values = {"inchworm": f"_inchworm_words {' '.join(COMMANDS)} --help --version"} | values
    options = {
        case: " ".join(
            ["_inchworm_words", *(flag for one in found if not one.argument for flag in one.flags), "--help"]
        )
        for case, found in cases.items()
    }
    arguments = {case: _offered(next(one for one in found if one.argument)) for case, found in cases.items()}
    return f"""_inchworm_offer() {{
    local word=$1 before=$2 place=$3 algorithm={TrainOptions.algorithm} previous= each=
    shift 2
    for each in "$@"; do
        case $previous in --algorithm) algorithm=$each ;; esac
        case $each in --algorithm=?*) algorithm=${{each#*=}} ;; =) ;; *) previous=$each ;; esac
    done
    if [[ $place == train ]]; then place=train:$algorithm; fi
    case ${{before//_/-}} in
        {_branches({flag: f"{offer}; return" for flag, offer in values.items()})}
    esac
    case $word in
    -*) case $place in
        {_branches(options)}
        esac ;;
    *) case $place in
        {_branches(arguments)}
        esac ;;
    esac
}}"""


def _branches(offers: Mapping[str, str]) -> str:
    """The branches of a `case`, together where they do the same."""
    words_of: dict[str, list[str]] = {}
    for word, offer in offers.items():
        words_of.setdefault(offer, []).append(word)
    return "\n        ".join(f"{'|'.join(words)}) {offer} ;;" for offer, words in words_of.items())


def _bash() -> str:
    return f"""# Completes inchworm in bash.
_inchworm_words() {{ COMPREPLY=($(compgen -W "$*" -- "$_inchworm_word")); }}
_inchworm_paths() {{
    local IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$1" -- "$_inchworm_word"))
}}
_inchworm_files() {{ _inchworm_paths -f; }}
_inchworm_folders() {{ _inchworm_paths -d; }}
{_function()}
_inchworm() {{
    local _inchworm_word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    COMPREPLY=()
    # An equals sign is a word of its own.
    if [[ $_inchworm_word == = ]]; then _inchworm_word=; fi
    if [[ $before == = ]]; then before=${{COMP_WORDS[COMP_CWORD-2]}}; fi
    if (( COMP_CWORD == 1 )); then before=inchworm; fi
    _inchworm_offer "$_inchworm_word" "$before" "${{COMP_WORDS[@]:1}}"
}}
complete -F _inchworm inchworm"""


def _zsh() -> str:
    return f"""# Completes inchworm in zsh.
_inchworm_words() {{ compadd -- "$@"; }}
_inchworm_files() {{ _files; }}
_inchworm_folders() {{ _files -/; }}
{_function()}
_inchworm() {{
    local word=$words[CURRENT] before=$words[CURRENT-1]
    if (( CURRENT == 2 )); then before=inchworm; fi
    if [[ $word == --*=* ]]; then before=${{word%%=*}}; compset -P '*='; fi
    _inchworm_offer "$word" "$before" "${{(@)words[2,-1]}}"
}}
compdef _inchworm inchworm"""


def _fish() -> str:
    rows = ["# Completes inchworm in fish.", "complete -c inchworm -f"]
    rows += [
        f"complete -c inchworm -n __fish_use_subcommand -a {name} -d {_quoted(COMMANDS[name])}" for name in COMMANDS
    ]
    where_of: dict[str, list[str]] = {}
    for case, options in _cases().items():
        command, _, algorithm = case.partition(":")
        rows_of_case = [row for option in options for row in _in_fish(option)]
        for row in rows_of_case:
            where_of.setdefault(f"{command} {row}", []).append(algorithm)
    for row, algorithms in where_of.items():
        command, _, rest = row.partition(" ")
        where = f"__fish_seen_subcommand_from {command}"
        if command == "train" and len(algorithms) < len(ALGORITHMS):
            where += f"; and __inchworm_learns_by {' '.join(algorithms)}"
        rows.append(f"complete -c inchworm -n '{where}' {rest}")
    return "\n".join([_FISH_FUNCTION, *rows])


_FISH_FUNCTION = f"""function __inchworm_learns_by
    set -l algorithm {TrainOptions.algorithm}
    set -l before
    for word in (string replace -- --algorithm= '--algorithm ' (commandline -opc) | string split ' ')
        if test "$before" = --algorithm
            set algorithm $word
        end
        set before $word
    end
    contains -- $algorithm $argv
end"""


def _in_fish(option: Option) -> list[str]:
    """What comes after the condition in `complete`."""
    if option.argument is not None:
        choices = "(__fish_complete_directories)" if option.argument == "RUN" else " ".join(option.choices)
        return [f"-a '{choices}'"] if choices else []
    takes = "" if not option.shown else " -r -F" if option.is_path else f" -x -a '{' '.join(option.choices)}'"
    about = _quoted(option.about.partition(".")[0])
    return [f"-l {flag.removeprefix('--')}{takes} -d {about}" for flag in option.flags]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
