"""Every error the library raises on purpose.

    InchwormError
    ├── ConfigError             a setting is wrong
    ├── EnvironmentContractError  an environment is unknown, or breaks its interface
    │   └── UnsupportedSpaceError   an observation or action space has no policy yet
    ├── CheckpointError         a checkpoint or policy file is missing, damaged or foreign
    ├── RunFolderError          a run's folder cannot be written, exists or is in use
    ├── MissingDependencyError  an optional package is not installed
    └── TrainingError           training cannot go on
        ├── InvariantError          acting and updating disagree about the policy
        ├── NonFiniteError          too many updates in a row were not finite
        └── WorkerError             a process that trained a seed or stepped environments died

Each message is one paragraph: the field and its value, what is wrong, what to do.
"""

from typing import Any, Self


class InchwormError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback."""


class FieldError(InchwormError):
    """An error about one named value.

    Attributes:
        field: name of the setting, file, space or argument.
        value: what was found there.
        problem: what is wrong with it, as the end of a sentence.
        fix: what to do about it, a sentence of its own.
    """

    def __init__(self, field: str, value: Any, problem: str, fix: str) -> None:
        self.field, self.value, self.problem, self.fix = field, value, problem, fix
        shown = value if isinstance(value, str) else repr(value)
        if len(shown) > 200:
            shown = shown[:200] + "..."
        super().__init__(f"{field} = {shown}: {problem}. {fix}")

    def with_fix(self, fix: str) -> Self:
        """The same error with something else to do about it."""
        return type(self)(self.field, self.value, self.problem, fix)


class ConfigError(FieldError):
    """A setting has a value that cannot work."""


class EnvironmentContractError(FieldError):
    """An environment is unknown or does not keep its interface's promises."""


class UnsupportedSpaceError(EnvironmentContractError):
    """An observation or action space that no policy handles."""


class CheckpointError(FieldError):
    """A checkpoint or policy file is missing, damaged, or belongs to something else."""


class RunFolderError(FieldError):
    """A run folder cannot be created, written or locked."""


class MissingDependencyError(FieldError):
    """An optional package is needed and not installed."""


class TrainingError(InchwormError):
    """Training cannot go on; the last good checkpoint is kept."""


class InvariantError(TrainingError):
    """The policy that is updated is not the policy that acted."""


class NonFiniteError(TrainingError):
    """Too many consecutive updates met NaN or infinity."""


class WorkerError(TrainingError):
    """A process that trained one of several seeds, or stepped some of the environments, died."""
