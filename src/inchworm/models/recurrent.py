"""Recurrent cores: the memory of a policy that acts on a history of observations.

A core is a pytree of its arrays. `step` serves acting, `unroll` the update; both clear the memory where an episode
starts, before the step is taken. The products of inputs with weights do not wait for the memory, so `unroll` computes
them for all steps at once and scans the rest.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from inchworm.models.mlp import orthogonal
from inchworm.numerics.tree import pytree
from inchworm.types import AnyArray, PRNGKey

Carry = TypeVar("Carry")
"""An array (..., H), or a tuple of them."""


@pytree
class GRU:
    """A gated recurrent unit: Cho et al. 2014, arXiv:1406.1078, section 2.3, in the form of cuDNN.

        r  = sigmoid(x W_r + h U_r + b_r)
        z  = sigmoid(x W_z + h U_z + b_z)
        n  = tanh(x W_n + b_n + r * (h U_n + c_n))
        h' = (1 - z) * n + z * h

    The paper resets h before its product with U_n; cuDNN and PyTorch reset the product. Columns of the arrays are in
    the order r, z, n. The carry is h, which is the output too.
    """

    input_weight: AnyArray
    """W, (F, 3 H)"""
    input_bias: AnyArray
    """b, (3 H,)"""
    recurrent_weight: AnyArray
    """U, (H, 3 H)"""
    recurrent_bias: AnyArray
    """c_n, (H,). A second bias in r and z would only add to the first."""

    @property
    def hidden_size(self) -> int:
        return self.recurrent_weight.shape[0]

    def initial_carry(self, num_envs: int) -> Float[Array, "N H"]:
        """The memory at an episode's start: zeros."""
        return jnp.zeros((num_envs, self.hidden_size), jnp.float32)

    def step(
        self, carry: Float[AnyArray, "N H"], x: Float[AnyArray, "N F"], first: Bool[AnyArray, " N"]
    ) -> tuple[Float[AnyArray, "N H"], Float[AnyArray, "N H"]]:
        """One step: the output and the next carry. Rows where `first` is true start from a zero carry."""
        carry = _step(self._cell, self.recurrent_weight, self._recurrent_bias, carry, self._gates(x), first)
        return carry, carry

    def unroll(
        self, carry: Float[AnyArray, "N H"], x: Float[AnyArray, "T N F"], first: Bool[AnyArray, "T N"]
    ) -> tuple[Float[AnyArray, "T N H"], Float[AnyArray, "T N H"]]:
        """T steps: the outputs, and the carries after each step, before any clearing."""
        carries: Any = _unroll(self._cell, self.recurrent_weight, self._recurrent_bias, carry, self._gates(x), first)
        return carries, carries

    @property
    def _recurrent_bias(self) -> Float[Array, " G"]:
        return jnp.concatenate([jnp.zeros(2 * self.hidden_size, jnp.float32), self.recurrent_bias])

    def _gates(self, x: Float[AnyArray, "*batch F"]) -> Float[Array, "*batch G"]:
        """What the inputs contribute to the gates."""
        return jnp.dot(x, self.input_weight) + self.input_bias

    @staticmethod
    def _cell(
        gates: Float[AnyArray, "N G"], product: Float[AnyArray, "N G"], h: Float[AnyArray, "N H"]
    ) -> Float[Array, "N H"]:
        x_r, x_z, x_n = jnp.split(gates, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(product, 3, axis=-1)
        r, z = _sigmoid(x_r + h_r), _sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * h_n)
        return (1.0 - z) * n + z * h


@pytree
class LSTM:
    """A long short-term memory with forget gates (Hochreiter and Schmidhuber 1997; Gers et al. 2000), no peepholes.

        i, f, o = sigmoid(x W + h U + b), each with its own columns
        g       = tanh(x W_g + h U_g + b_g)
        c'      = f * c + i * g
        h'      = o * tanh(c')

    Columns of the arrays are in the order i, f, g, o. The carry is (h, c); the output is h.
    """

    input_weight: AnyArray
    """W, (F, 4 H)"""
    bias: AnyArray
    """b, (4 H,)"""
    recurrent_weight: AnyArray
    """U, (H, 4 H)"""

    @property
    def hidden_size(self) -> int:
        return self.recurrent_weight.shape[0]

    def initial_carry(self, num_envs: int) -> tuple[Float[Array, "N H"], Float[Array, "N H"]]:
        """The memory at an episode's start: zeros."""
        zeros = jnp.zeros((num_envs, self.hidden_size), jnp.float32)
        return zeros, zeros

    def step(
        self,
        carry: tuple[Float[AnyArray, "N H"], Float[AnyArray, "N H"]],
        x: Float[AnyArray, "N F"],
        first: Bool[AnyArray, " N"],
    ) -> tuple[Float[AnyArray, "N H"], tuple[Float[AnyArray, "N H"], Float[AnyArray, "N H"]]]:
        """One step: the output and the next carry. Rows where `first` is true start from a zero carry."""
        carry = _step(self._cell, self.recurrent_weight, self.bias, carry, self._gates(x), first)
        return carry[0], carry

    def unroll(
        self,
        carry: tuple[Float[AnyArray, "N H"], Float[AnyArray, "N H"]],
        x: Float[AnyArray, "T N F"],
        first: Bool[AnyArray, "T N"],
    ) -> tuple[Float[AnyArray, "T N H"], tuple[Float[AnyArray, "T N H"], Float[AnyArray, "T N H"]]]:
        """T steps: the outputs, and the carries after each step, before any clearing."""
        carries: Any = _unroll(self._cell, self.recurrent_weight, self.bias, carry, self._gates(x), first)
        return carries[0], carries

    def _gates(self, x: Float[AnyArray, "*batch F"]) -> Float[Array, "*batch G"]:
        """What the inputs contribute to the gates."""
        return jnp.dot(x, self.input_weight)

    @staticmethod
    def _cell(
        gates: Float[AnyArray, "N G"],
        product: Float[AnyArray, "N G"],
        carry: tuple[Float[AnyArray, "N H"], Float[AnyArray, "N H"]],
    ) -> tuple[Float[Array, "N H"], Float[Array, "N H"]]:
        _, c = carry
        i, f, g, o = jnp.split(gates + product, 4, axis=-1)
        c = _sigmoid(f) * c + _sigmoid(i) * jnp.tanh(g)
        return _sigmoid(o) * jnp.tanh(c), c


def orthogonal_gru(key: PRNGKey, inputs: int, hidden_size: int) -> GRU:
    """A GRU whose weights are orthogonal with gain 1, gate by gate, and whose biases are zero."""
    input_weight, recurrent_weight = _orthogonal_gates(key, inputs, hidden_size, 3)
    zeros = jnp.zeros(3 * hidden_size, jnp.float32)
    return GRU(input_weight, zeros, recurrent_weight, zeros[:hidden_size])


def orthogonal_lstm(key: PRNGKey, inputs: int, hidden_size: int) -> LSTM:
    """An LSTM whose weights are orthogonal with gain 1, gate by gate, and whose biases are zero but for f.

    The forget gate's bias starts at 1, so that it begins by remembering: Jozefowicz et al. 2015, "An empirical
    exploration of recurrent network architectures".
    """
    input_weight, recurrent_weight = _orthogonal_gates(key, inputs, hidden_size, 4)
    bias = jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0], jnp.float32), hidden_size)
    return LSTM(input_weight, bias, recurrent_weight)


def _orthogonal_gates(
    key: PRNGKey, inputs: int, hidden_size: int, num_gates: int
) -> tuple[Float[Array, "F G"], Float[Array, "H G"]]:
    """The two weights of a core, each gate's block of columns orthogonal by itself."""
    # One draw for both, as in `orthogonal_mlp`.
    normal = jax.random.normal(key, (inputs + hidden_size, num_gates, hidden_size), jnp.float32)
    blocks = jax.vmap(orthogonal, in_axes=1, out_axes=1)
    columns = num_gates * hidden_size
    return (
        blocks(normal[:inputs]).reshape(inputs, columns),
        blocks(normal[inputs:]).reshape(hidden_size, columns),
    )


Cell = Callable[[AnyArray, AnyArray, Any], Any]
"""What is left of a step once its two products with weights are there: both of them and the carry give the next carry,
element by element."""


def _clear(carry: Carry, first: Bool[AnyArray, "*batch N"]) -> Carry:
    """The carry with zeros in the rows where an episode starts."""
    return jax.tree.map(lambda leaf: jnp.where(first[..., None], 0.0, leaf), carry)


def _product(weight: AnyArray, bias: AnyArray, carry: Any) -> Float[Array, "*batch G"]:
    """What the memory contributes to the gates: h, the carry's first leaf, times the weight."""
    return jnp.dot(jax.tree.leaves(carry)[0], weight) + bias


def _step(
    cell: Cell,
    weight: AnyArray,
    bias: AnyArray,
    carry: Carry,
    gates: Float[AnyArray, "N G"],
    first: Bool[AnyArray, " N"],
) -> Carry:
    carry = _clear(carry, first)
    return cell(gates, _product(weight, bias, carry), carry)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unroll(
    cell: Cell,
    weight: Float[AnyArray, "H G"],
    bias: Float[AnyArray, " G"],
    carry: Any,
    gates: Float[AnyArray, "T N G"],
    first: Bool[AnyArray, "T N"],
) -> Any:
    """The carries after each step.

    The derivative that JAX finds adds h_t^T dz_t to the weight's gradient at every step, a pass over the whole weight
    for one row of it. This one keeps dz_t, and takes the gradient as one product over all steps: twice as fast with 256
    units. It is for reverse mode only; `jax.linear_transpose` of it is forward mode.
    """

    def step(carry: Any, row: tuple[AnyArray, AnyArray]) -> tuple[Any, Any]:
        carry = _step(cell, weight, bias, carry, *row)
        return carry, carry

    return jax.lax.scan(step, carry, (gates, first))[1]


def _unroll_forward(cell: Cell, weight: Any, bias: Any, carry: Any, gates: Any, first: Any) -> Any:
    carries = _unroll(cell, weight, bias, carry, gates, first)
    before = jax.tree.map(lambda start, after: jnp.concatenate([start[None], after[:-1]]), carry, carries)
    return carries, (weight, bias, _clear(before, first), gates, first)


def _unroll_backward(cell: Cell, saved: Any, gradients: Any) -> Any:
    weight, bias, before, gates, first = saved
    products, transposed = _product(weight, bias, before), weight.T

    def step(d_after: Any, row: Any) -> Any:
        gradient, gates, product, before, first = row
        _, pull_back = jax.vjp(cell, gates, product, before)
        d_gates, d_product, d_before = pull_back(jax.tree.map(jnp.add, gradient, d_after))
        leaves, structure = jax.tree.flatten(d_before)
        leaves[0] += jnp.dot(d_product, transposed)
        return _clear(jax.tree.unflatten(structure, leaves), first), (d_gates, d_product)

    end = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), before)
    d_carry, (d_gates, d_products) = jax.lax.scan(step, end, (gradients, gates, products, before, first), reverse=True)
    d_weight = jnp.einsum("tnh,tng->hg", jax.tree.leaves(before)[0], d_products)
    return d_weight, jnp.sum(d_products, axis=(0, 1)), d_carry, d_gates, None


_unroll.defvjp(_unroll_forward, _unroll_backward)


def _sigmoid(x: Float[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    # With `jax.nn.sigmoid` a scan over 256 units takes XLA's CPU backend half as long again.
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)
