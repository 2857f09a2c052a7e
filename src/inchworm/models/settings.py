"""The settings of policies and value functions, which every algorithm shares."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from inchworm.checks import check_choice, check_flag, check_integer, check_known
from inchworm.errors import ConfigError
from inchworm.models.convolution import IMAGE_NETWORKS
from inchworm.models.mlp import ACTIVATIONS
from inchworm.rl.schedules import Scalar, Schedule, check_scalar
from inchworm.spaces import Squash

MAX_LAYERS, MAX_WIDTH = 64, 1 << 16
"""Of a network; what is beyond is a slip of the pen, or a file that was made to fill the memory."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What the policy and the value function are made of.

    An observation's images go through a convolutional network each, everything else is flattened; then comes a
    recurrent core, if there is one, then the hidden layers, then the distribution or the value.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the policy and of the value network."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation of the hidden layers."""
    image_network: Literal["nature", "small", "impala"] = "nature"
    """Convolutional network for images: Mnih et al. 2015, Mnih et al. 2016 (the paper's), Espeholt et al. 2018."""
    recurrent: Literal["none", "gru", "lstm"] = "none"
    """Memory between the steps of an episode."""
    recurrent_size: int = 64
    """Width of the recurrent state."""
    shared_trunk: bool = False
    """Policy and value share all but their last layer, instead of nothing."""
    action_distribution: Literal["gaussian", "tanh_gaussian", "beta"] = "gaussian"
    """Of a Box's actions: clipped at the environment's door, squashed by tanh, or on a bounded interval."""
    log_std: Scalar | Literal["learned", "state"] = "learned"
    """Log of a Gaussian's deviation: learned and the same in every state (the paper), an output of the network, or a
    number or schedule."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which networks compute; parameters, memory, advantages and statistics are float32 in any case."""

    def __new__(cls, *unnamed: Any, **settings: Any) -> Self:
        # Before the dataclass's own `__init__`, which would raise a TypeError that names no setting.
        if unnamed:
            raise ConfigError(
                cls.__name__,
                repr(unnamed[0]),
                "is given without the name of a setting",
                f"Name each, as in {cls.__name__}(hidden_sizes=(64, 64)).",
            )
        check_known(settings, cls)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if not isinstance(self.hidden_sizes, list | tuple):
            raise ConfigError("hidden_sizes", self.hidden_sizes, "is not a list of widths", "Give e.g. (64, 64).")
        if len(self.hidden_sizes) > MAX_LAYERS:
            problem = f"has {len(self.hidden_sizes):,} layers, more than {MAX_LAYERS}"
            raise ConfigError("hidden_sizes", self.hidden_sizes, problem, "Give fewer.")
        widths = tuple(check_integer("hidden_sizes", n, 1, MAX_WIDTH) for n in self.hidden_sizes)
        object.__setattr__(self, "hidden_sizes", widths)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("image_network", self.image_network, IMAGE_NETWORKS)
        check_choice("recurrent", self.recurrent, ("none", "gru", "lstm"))
        object.__setattr__(self, "recurrent_size", check_integer("recurrent_size", self.recurrent_size, 1, MAX_WIDTH))
        check_flag("shared_trunk", self.shared_trunk)
        check_choice("compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        check_choice("action_distribution", self.action_distribution, ("gaussian", "tanh_gaussian", "beta"))
        log_std: Any = self.log_std
        if not isinstance(log_std, str) or log_std not in ("learned", "state"):
            object.__setattr__(self, "log_std", check_scalar("log_std", log_std, minimum=-20.0, maximum=20.0))
        if self.log_std != "learned" and self.action_distribution == "beta":
            raise ConfigError("log_std", self.log_std, "means nothing to a Beta distribution", "Leave it out.")

    @property
    def squash(self) -> Squash:
        """How a Box's actions get from the policy's own numbers to the environment's."""
        squashes: dict[str, Squash] = {"gaussian": "clip", "tanh_gaussian": "tanh", "beta": "unit"}
        return squashes[self.action_distribution]

    def unread(self) -> dict[str, str]:
        """Settings that nothing reads because of the others' values, by name, and what each would need.

        A value that is not the class's default is then refused by `inchworm.planning` if the user named the setting,
        and warned of in settings given whole; one that a preset brings along is passed over. It is no error to make
        such settings, so that `dataclasses.replace` can change one of several that go together.
        """
        unread = {}
        if self.recurrent == "none":
            unread["recurrent_size"] = "recurrent = gru or lstm"
        if not self.hidden_sizes:
            unread["activation"] = "a hidden layer"
        return unread


def to_json(settings: Any, kind: type) -> dict[str, Any]:
    """Those settings that `kind` declares, as JSON; schedules in their text form."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)}
    return {name: str(value) if isinstance(value, Schedule) else value for name, value in values.items()}
