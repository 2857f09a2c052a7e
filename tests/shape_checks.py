"""The type checker that jaxtyping's import hook applies to the package under pytest: shapes, and nothing else."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Self, get_args, get_origin

import jax
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import AbstractArray

# `float` takes an int (PEP 484). beartype knows `Self` only when it decorates the whole class; the hook decorates
# methods one by one.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any})))


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checked by beartype if its signature names a shape.

    Other annotations are pyright's business: settings and entry points turn wrong types into errors of their own,
    which tests must be able to provoke. A dataclass's fields are checked where all of them are arrays, because JAX
    also builds registered dataclasses of placeholders.
    """
    if not any(_names_a_shape(hint) for hint in function.__annotations__.values()):
        return function
    checked = _checked(function)
    if function.__name__ != "__init__":
        return checked

    @wraps(function)
    def check_fields(self: Any, *args: Any, **kwargs: Any) -> Any:
        fields = (*args, *kwargs.values())
        return (
            checked(self, *args, **kwargs)
            if all(isinstance(field, jax.Array | np.ndarray) for field in fields)
            else None
        )

    return check_fields


def _names_a_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    if get_origin(hint) is Callable:  # a function that is handed over is checked where it is defined
        return False
    return any(_names_a_shape(part) for part in get_args(hint))
