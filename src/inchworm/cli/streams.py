"""Output streams whose reader has gone, whose disk is full, or whose encoding lacks a letter."""

import codecs
import os
from typing import TextIO

_IN_ASCII = {"±": "+-", "→": "->", "‖": "||"}


def forgiving(stream: TextIO | None) -> None:
    """Makes a stream replace letters that its encoding lacks, in place of raising an error."""
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(errors="inchworm")


def give_up_broken(*streams: TextIO | None) -> None:
    """Leads streams that cannot be written into nothing, so that the interpreter can flush them when it ends."""
    for stream in streams:
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _in_letters_it_has(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_IN_ASCII.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("inchworm", _in_letters_it_has)
