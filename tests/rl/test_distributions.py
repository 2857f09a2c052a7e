"""Action distributions against scipy, integrals and samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.special
import scipy.stats
from jax.flatten_util import ravel_pytree

import oracles
from inchworm import spaces
from inchworm.rl.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    Product,
    TanhGaussian,
)
from inchworm.rl.distributions.rounding import BFLOAT16

NUM_SAMPLES = 1_000_000
NUM_BETA_SAMPLES = 200_000
NUM_TESTED = 200_000  # by the test of Kolmogorov and Smirnov, which sorts
# Statistical bounds are five standard errors: a right implementation misses one once in two million tries.
SIGMAS = 5.0
SIGMAS_P_VALUE = 6e-7

rng = np.random.default_rng(0)
LOGITS = np.float32(rng.normal(size=(6, 4)) * 2)
OTHER_LOGITS = np.float32(rng.normal(size=(6, 4)))
CHOICES = np.int32(rng.integers(4, size=6))
MEAN = np.float32(rng.normal(size=(6, 3)))
OTHER_MEAN = np.float32(rng.normal(size=(6, 3)))
LOG_STD = np.float32([-1.0, 0.0, 0.7])
OTHER_LOG_STD = np.float32([-0.5, -0.2, 1.0])
VECTORS = np.float32(rng.normal(size=(6, 3)))
LOG_STDS = np.float32(rng.uniform(-1.5, 0, size=(6, 3)))
OTHER_LOG_STDS = np.float32(rng.uniform(-1, 0, size=(6, 3)))
NVEC = (3, 2, 2)
OPTIONS = np.float32(rng.normal(size=(6, 7)))
OTHER_OPTIONS = np.float32(rng.normal(size=(6, 7)))
SEVERAL_CHOICES = np.int32(rng.integers(NVEC, size=(6, 3)))
BITS = np.int32(rng.integers(2, size=(6, 3)))
ALPHA, BETA, OTHER_ALPHA, OTHER_BETA = np.float32(1.1 + rng.exponential(2, size=(4, 6, 2)))
FRACTIONS = np.float32(rng.uniform(0.05, 0.95, size=(6, 2)))

CATEGORICAL = (Categorical(LOGITS), Categorical(OTHER_LOGITS), CHOICES)
GAUSSIAN = (DiagonalGaussian(MEAN, LOG_STD), DiagonalGaussian(OTHER_MEAN, OTHER_LOG_STD), VECTORS)
BERNOULLI = (Bernoulli(MEAN), Bernoulli(OTHER_MEAN), BITS)
BETAS = (Beta(ALPHA, BETA), Beta(OTHER_ALPHA, OTHER_BETA), FRACTIONS)
SPACE = spaces.Dict(
    (
        ("gear", spaces.Discrete(4)),
        ("rest", spaces.Tuple((spaces.Box((3,), "float32", -1.0, 1.0), spaces.Box((3,), "float32", 0.0, 1.0)))),
    )
)
CASES = {
    "categorical": CATEGORICAL,
    "multi-categorical": (
        MultiCategorical(OPTIONS, NVEC),
        MultiCategorical(OTHER_OPTIONS, NVEC),
        SEVERAL_CHOICES,
    ),
    "bernoulli": BERNOULLI,
    "gaussian": GAUSSIAN,
    "state-dependent gaussian": (
        DiagonalGaussian(MEAN, LOG_STDS),
        DiagonalGaussian(OTHER_MEAN, OTHER_LOG_STDS),
        VECTORS,
    ),
    "tanh-gaussian": (TanhGaussian(MEAN, LOG_STDS), TanhGaussian(OTHER_MEAN, OTHER_LOG_STDS), VECTORS),
    "beta": BETAS,
    "product": (
        Product((CATEGORICAL[0], GAUSSIAN[0], BERNOULLI[0]), SPACE),
        Product((CATEGORICAL[1], GAUSSIAN[1], BERNOULLI[1]), SPACE),
        {"gear": CHOICES, "rest": (VECTORS, BITS)},
    ),
}
ON_NUMPY = [name for name in CASES if name != "beta"]

every_case = pytest.mark.parametrize("name", CASES)


def quantities(distribution, other, action):
    """Everything deterministic that a distribution tells."""
    return {
        "log_prob": distribution.log_prob(action),
        "entropy": distribution.entropy(),
        "kl": distribution.kl(other),
        "mode": distribution.mode(),
    }


compiled_quantities = jax.jit(quantities)


class TanhNormal:
    """The density of y = tanh(u), written as a function of y."""

    def __init__(self, mean, std):
        self._mean, self._std, self._normal = mean, std, scipy.stats.norm(mean, std)

    def logpdf(self, y):
        return oracles.normal_log_density(np.arctanh(y), self._mean, self._std) - np.log(1 - y**2)

    def pdf(self, y):
        return np.exp(self.logpdf(y))

    def cdf(self, y):
        return self._normal.cdf(np.arctanh(y))

    def ppf(self, p):
        return np.tanh(self._normal.ppf(p))


def choice(logits):
    return scipy.stats.rv_discrete(values=(range(len(logits)), oracles.softmax(logits)))


def exact(distribution, row):
    """scipy's distributions of the independent elements in a row."""
    leaves = [np.float64(leaf) for leaf in jax.tree.leaves(distribution)]
    match distribution:
        case Categorical():
            return [choice(leaves[0][row])]
        case MultiCategorical():
            return [choice(logits) for logits in np.split(leaves[0][row], np.cumsum(distribution.nvec)[:-1])]
        case Bernoulli():
            return [scipy.stats.bernoulli(p) for p in scipy.special.expit(leaves[0][row])]
        case Product():
            return [element for part in distribution.parts for element in exact(part, row)]
        case Beta():
            of_an_element = scipy.stats.beta
        case DiagonalGaussian() | TanhGaussian():
            leaves[1] = np.exp(np.broadcast_to(leaves[1], leaves[0].shape))
            of_an_element = scipy.stats.norm if isinstance(distribution, DiagonalGaussian) else TanhNormal
    return [of_an_element(*parameters) for parameters in zip(leaves[0][row], leaves[1][row], strict=True)]


def outcome(distribution, action):
    """Actions (rows, ...) as what the densities are of, a column for each element."""
    columns = [np.float64(leaf).reshape((len(leaf), -1)) for leaf in jax.tree.leaves(action)]
    columns = np.concatenate(columns, axis=1)
    return np.tanh(columns) if isinstance(distribution, TanhGaussian) else columns


def log_density(p, y):
    return p.logpmf(y) if hasattr(p, "pmf") else p.logpdf(y)


def expectation(p, function):
    """E_p[function(y)] as a sum or as an integral."""
    if hasattr(p, "pmf"):
        low, high = p.support()
        return sum(p.pmf(y) * function(y) for y in range(int(low), int(high) + 1))
    low, high = p.ppf(1e-12), p.ppf(1 - 1e-12)
    return scipy.integrate.quad(lambda y: p.pdf(y) * function(y), low, high, epsabs=1e-8, epsrel=1e-8, limit=200)[0]


def exact_entropy(distribution, row):
    return sum(expectation(p, lambda y, p=p: -log_density(p, y)) for p in exact(distribution, row))


def exact_kl(distribution, other, row):
    pairs = zip(exact(distribution, row), exact(other, row), strict=True)
    return sum(expectation(p, lambda y, p=p, q=q: log_density(p, y) - log_density(q, y)) for p, q in pairs)


def exact_log_prob(distribution, action):
    rows = enumerate(outcome(distribution, action))
    return np.array(
        [sum(log_density(p, y) for p, y in zip(exact(distribution, row), ys, strict=True)) for row, ys in rows]
    )


@every_case
def test_log_prob_is_scipy_s_summed_over_the_action(name):
    distribution, _, action = CASES[name]
    expected = exact_log_prob(distribution, action)
    np.testing.assert_allclose(compiled_quantities(*CASES[name])["log_prob"], expected, rtol=1e-5, atol=2e-6)


@every_case
def test_entropy_is_the_sum_or_integral(name):
    found = compiled_quantities(*CASES[name])["entropy"]
    expected = [exact_entropy(CASES[name][0], row) for row in (0, 1)]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-5, atol=2e-6)


@every_case
def test_kl_is_the_sum_or_integral_with_the_old_one_first(name):
    distribution, other, _ = CASES[name]
    expected = [exact_kl(distribution, other, row) for row in (0, 1)]
    np.testing.assert_allclose(compiled_quantities(*CASES[name])["kl"][:2], expected, rtol=1e-5, atol=2e-6)


def test_modes_are_the_likeliest_action():
    modes = {name: compiled_quantities(*case)["mode"] for name, case in CASES.items()}
    np.testing.assert_array_equal(modes["categorical"], LOGITS.argmax(-1))
    np.testing.assert_array_equal(modes["gaussian"], MEAN)
    several = [logits.argmax(-1) for logits in np.split(OPTIONS, [3, 5], axis=1)]
    np.testing.assert_array_equal(modes["multi-categorical"], np.stack(several, axis=1))
    np.testing.assert_array_equal(modes["bernoulli"], MEAN > 0)
    assert sorted(modes["product"]) == ["gear", "rest"]
    for part, mode in zip(("categorical", "gaussian", "bernoulli"), jax.tree.leaves(modes["product"]), strict=True):
        np.testing.assert_array_equal(mode, modes[part])
    grid = np.linspace(0, 1, 10_001)[1:-1]
    densities = scipy.stats.beta(ALPHA.ravel()[:, None], BETA.ravel()[:, None]).pdf(grid)
    np.testing.assert_allclose(modes["beta"].ravel(), grid[densities.argmax(-1)], atol=1e-4)


def test_the_mode_of_a_flat_beta_is_its_middle_and_of_a_sloping_one_just_inside_the_end():
    flat, falling, rising = np.float32([[1, 1, 4], [1, 4, 1]]).T
    mode = Beta(np.stack([flat, falling, rising])[:, :1], np.stack([flat, falling, rising])[:, 1:]).mode()
    np.testing.assert_allclose(mode[:, 0], [0.5, 1e-6, 1 - 1e-6], rtol=1e-6)


def test_the_mode_of_a_flat_beta_divides_by_no_zero_on_the_way():
    flat = jnp.ones((1, 1))
    with jax.debug_nans(True):
        np.testing.assert_array_equal(Beta(flat, flat).mode(), [[0.5]])


def test_the_tanh_gaussian_s_mode_is_the_median_of_what_it_squashes():
    distribution = CASES["tanh-gaussian"][0]
    medians = [p.ppf(0.5) for p in exact(distribution, 0)]
    np.testing.assert_allclose(np.tanh(distribution.mode()[0]), medians, rtol=1e-6)


def one_bit(p):
    return np.log(np.float32([[p]])) - np.log(np.float32([[1 - p]]))


ORIGIN = np.zeros((1, 1), np.float32)
EVEN, SKEWED = (np.log(np.float32([p])) for p in ([0.5, 0.5], [0.9, 0.1]))
EVEN_TO_SKEWED = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
SKEWED_TO_EVEN = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
NARROW_TO_WIDE, WIDE_TO_NARROW = math.log(2) + 1 / 8 - 1 / 2, -math.log(2) + 2 - 1 / 2
TWO = spaces.Tuple((spaces.Discrete(2), spaces.Box((1,), "float32", -1.0, 1.0)))
NARROW, WIDE = (DiagonalGaussian(ORIGIN, np.log(np.float32([[std]]))) for std in (1, 2))


@pytest.mark.parametrize(
    ("p", "q", "p_to_q", "q_to_p"),
    [
        (Categorical(EVEN), Categorical(SKEWED), EVEN_TO_SKEWED, SKEWED_TO_EVEN),
        (
            MultiCategorical(np.concatenate([EVEN, EVEN], axis=1), (2, 2)),
            MultiCategorical(np.concatenate([EVEN, SKEWED], axis=1), (2, 2)),
            EVEN_TO_SKEWED,
            SKEWED_TO_EVEN,
        ),
        (Bernoulli(one_bit(0.5)), Bernoulli(one_bit(0.9)), EVEN_TO_SKEWED, SKEWED_TO_EVEN),
        (NARROW, WIDE, NARROW_TO_WIDE, WIDE_TO_NARROW),
        (
            TanhGaussian(NARROW.mean, NARROW.log_std),
            TanhGaussian(WIDE.mean, WIDE.log_std),
            NARROW_TO_WIDE,
            WIDE_TO_NARROW,
        ),
        # Densities 1 and 2 y.
        (Beta(ORIGIN + 1, ORIGIN + 1), Beta(ORIGIN + 2, ORIGIN + 1), 1 - math.log(2), math.log(2) - 1 / 2),
        (
            Product((Categorical(EVEN), NARROW), TWO),
            Product((Categorical(SKEWED), WIDE), TWO),
            EVEN_TO_SKEWED + NARROW_TO_WIDE,
            SKEWED_TO_EVEN + WIDE_TO_NARROW,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_kl_is_not_symmetric_and_its_order_is_self_then_other(p, q, p_to_q, q_to_p):
    assert p.kl(q) == pytest.approx(p_to_q, rel=1e-5)
    assert q.kl(p) == pytest.approx(q_to_p, rel=1e-5)


kl_and_slopes = jax.jit(lambda p, q: (p.kl(q), jax.grad(lambda p, q: p.kl(q).sum(), argnums=(0, 1))(p, q)))


@every_case
def test_kl_of_a_distribution_with_itself_and_its_slopes_there_are_exactly_zero(name):
    distribution = CASES[name][0]
    kl, slopes = kl_and_slopes(distribution, distribution)
    np.testing.assert_array_equal(kl, np.zeros(6))
    for slope in jax.tree.leaves(slopes):
        np.testing.assert_array_equal(slope, np.zeros(slope.shape))


def choice_information(logits):
    """Of one choice, by its logits: diag(p) - p p^T."""
    p = oracles.softmax(logits)
    return np.diag(p) - np.outer(p, p)


def normal_information(log_std):
    """Of a normal vector, by its means and then its log-stds: 1 / sigma^2 and 2."""
    return np.diag(np.concatenate([np.exp(-2 * np.float64(log_std)), np.full(len(log_std), 2.0)]))


def beta_information(alpha, beta):
    """Of one beta distribution, by alpha and beta, in terms of the trigamma function."""
    of_both = scipy.special.polygamma(1, alpha + beta)
    return np.diag(scipy.special.polygamma(1, [alpha, beta])) - of_both


@pytest.mark.parametrize(
    ("distribution", "fisher"),
    [
        (Categorical(LOGITS[0]), choice_information(LOGITS[0])),
        (
            MultiCategorical(OPTIONS[0], NVEC),
            scipy.linalg.block_diag(*map(choice_information, np.split(OPTIONS[0], [3, 5]))),
        ),
        (Bernoulli(MEAN[0]), np.diag(scipy.special.expit(MEAN[0]) * scipy.special.expit(-MEAN[0]))),
        (DiagonalGaussian(MEAN[0], LOG_STD), normal_information(LOG_STD)),
        (TanhGaussian(MEAN[0], LOG_STD), normal_information(LOG_STD)),
        (Beta(ALPHA[0, :1], BETA[0, :1]), beta_information(ALPHA[0, 0], BETA[0, 0])),
        (
            Product((Categorical(LOGITS[0, :2]), DiagonalGaussian(MEAN[0, :1], LOG_STD[:1])), TWO),
            scipy.linalg.block_diag(choice_information(LOGITS[0, :2]), normal_information(LOG_STD[:1])),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_curvature_of_kl_at_the_distribution_itself_is_the_fisher_information(distribution, fisher):
    flat, restore = ravel_pytree(distribution)

    curvature = jax.jit(lambda old, new: jax.hessian(lambda moved: old.kl(restore(moved)))(new))(distribution, flat)
    np.testing.assert_allclose(curvature, fisher, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [DiagonalGaussian, TanhGaussian])
def test_a_kl_of_one_part_in_a_hundred_million_is_still_resolved(kind):
    base, step = np.zeros((1, 1), np.float32), np.float32(1e-4)
    kl = kind(base, base[0]).kl(kind(base, base[0] + step))
    # To second order in the change of log sigma the KL is its square.
    assert kl[0] == pytest.approx(step**2, rel=5e-3)


def on_jax(distribution):
    return jax.tree.map(jnp.asarray, distribution)


def first_row(distribution):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[0] if leaf.ndim == 2 else leaf), distribution)


def draw_noise(distribution, key, shape):
    if isinstance(distribution, Product):
        keys = jax.random.split(key, len(distribution.parts))
        return tuple(draw_noise(part, own, shape) for part, own in zip(distribution.parts, keys, strict=True))
    return distribution.draw_noise(key, (*shape, jax.tree.leaves(distribution)[0].shape[-1]))


@jax.jit
def samples_with_surprise_and_log_ratio(distribution, other, noise):
    """A sample a ~ p for each row of noise, -log p(a) and log p(a) - log q(a)."""

    def of_one(row):
        action = distribution.sample_from(row)
        log_p = distribution.log_prob(action)
        return action, -log_p, log_p - other.log_prob(action)

    return jax.vmap(of_one)(noise)


@pytest.fixture(scope="module", params=CASES)
def sampled(request):
    distribution, other, _ = CASES[request.param]
    num_samples = NUM_BETA_SAMPLES if request.param == "beta" else NUM_SAMPLES
    first = first_row(distribution)
    noise = draw_noise(first, jax.random.key(0), (num_samples,))
    return request.param, *samples_with_surprise_and_log_ratio(first, first_row(other), noise)


def test_entropy_and_kl_are_means_over_samples(sampled):
    name, _, surprise, log_ratio = sampled
    found = compiled_quantities(*CASES[name])
    for sample, mean in ((surprise, found["entropy"][0]), (log_ratio, found["kl"][0])):
        sample = np.asarray(sample, np.float64)
        assert abs(sample.mean() - mean) < SIGMAS * sample.std() / math.sqrt(len(sample))


def test_samples_have_the_exact_distribution_and_are_independent(sampled):
    name, samples, _, _ = sampled
    distribution = CASES[name][0]
    columns = outcome(distribution, samples)
    for p, column in zip(exact(distribution, 0), columns.T, strict=True):
        if hasattr(p, "pmf"):
            frequency = np.bincount(column.astype(int), minlength=int(p.support()[1]) + 1) / len(column)
            mass = p.pmf(np.arange(len(frequency)))
            assert (np.abs(frequency - mass) < SIGMAS * np.sqrt(mass * (1 - mass) / len(column))).all()
        else:
            assert scipy.stats.kstest(column[:NUM_TESTED], p.cdf, method="asymp").pvalue > SIGMAS_P_VALUE
    correlations = np.corrcoef(columns.T).reshape((columns.shape[1],) * 2)[np.triu_indices(columns.shape[1], 1)]
    assert (np.abs(correlations) < SIGMAS / math.sqrt(len(columns))).all()


compiled_sample = jax.jit(lambda distribution, key: ravel_pytree(distribution.sample(key))[0])


@every_case
def test_a_sample_is_a_function_of_the_key_alone(name):
    once, again, other = (compiled_sample(CASES[name][0], jax.random.key(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(once, again)
    assert (np.asarray(once) != other).any()


def test_a_product_s_sample_is_its_parts_by_the_keys_that_its_own_is_split_into():
    product = CASES["product"][0]
    key = jax.random.key(9)
    expected = product.sample_from(draw_noise(product, key, (6,)))
    jax.tree.map(np.testing.assert_array_equal, product.sample(key), expected)
    assert jax.tree.structure(expected) == jax.tree.structure(CASES["product"][2])


def test_beta_s_noise_is_one_key_a_row_and_any_batch_shape_will_do():
    for batch in [(), (5,), (2, 3)]:
        noise = Beta.draw_noise(jax.random.key(0), (*batch, 2))
        assert noise.shape == (*batch, 2)
        assert noise.dtype == np.uint32
        assert len(np.unique(noise.reshape((-1, 2)), axis=0)) == math.prod(batch)
        assert jax.eval_shape(Beta(ALPHA[0], BETA[0]).sample_from, noise).shape == (*batch, 2)


def test_beta_s_samples_on_numpy_are_those_of_jax_row_by_row():
    noise = np.asarray(Beta.draw_noise(jax.random.key(7), (6, 2)))
    together = compiled_sample(BETAS[0], jax.random.key(7)).reshape((6, 2))
    np.testing.assert_allclose(BETAS[0].sample_from(noise), together, rtol=1e-6)
    one = jax.random.beta(jax.random.wrap_key_data(noise[3]), ALPHA[3], BETA[3])
    np.testing.assert_allclose(one, together[3], rtol=1e-6)


def test_beta_samples_stay_inside_and_have_no_gradient():
    ends = np.full((6, 2), 0.01, np.float32)
    sample = np.asarray(compiled_sample(Beta(ends, ends), jax.random.key(0)))
    assert sample.min() == np.float32(1e-6)
    assert sample.max() == np.float32(1 - 1e-6)
    slopes = jax.jit(jax.grad(lambda distribution: distribution.sample(jax.random.key(0)).sum()))(BETAS[0])
    for slope in jax.tree.leaves(slopes):
        np.testing.assert_array_equal(slope, np.zeros((6, 2)))


MASK = np.array([True, False, True, False])


def test_masked_actions_are_never_sampled_and_the_others_keep_their_odds():
    masked = Categorical.masked(jnp.asarray(LOGITS[0]), jnp.asarray(MASK))
    noise = Categorical.draw_noise(jax.random.key(3), (NUM_SAMPLES, 4))
    frequency = np.bincount(np.asarray(masked.sample_from(noise)), minlength=4) / NUM_SAMPLES
    assert (frequency[~MASK] == 0).all()
    p = oracles.softmax(LOGITS[0, MASK])
    assert (np.abs(frequency[MASK] - p) < SIGMAS * np.sqrt(p * (1 - p) / NUM_SAMPLES)).all()


def test_a_masked_distribution_is_that_over_the_allowed_actions():
    masked = Categorical.masked(jnp.asarray(LOGITS[0]), jnp.asarray(MASK))
    p = oracles.softmax(LOGITS[0, MASK])
    assert masked.entropy() == pytest.approx(scipy.stats.entropy(p), rel=1e-5)
    assert masked.log_prob(jnp.array(2)) == pytest.approx(math.log(p[1]), rel=1e-5)
    other = Categorical.masked(jnp.asarray(OTHER_LOGITS[0]), jnp.asarray(MASK))
    assert masked.kl(other) == pytest.approx(scipy.stats.entropy(p, oracles.softmax(OTHER_LOGITS[0, MASK])), rel=1e-5)


@jax.jit
def masked_quantities_and_jacobian(logits, mask, allowed):
    def of(z):
        masked, other = (Categorical.masked(x, mask) for x in (z, jnp.asarray(OTHER_LOGITS[0])))
        return jnp.stack([masked.entropy(), masked.log_prob(allowed), masked.kl(other), other.kl(masked)])

    return of(logits), jax.jacobian(of)(logits)


@pytest.mark.parametrize("mask", [MASK, np.array([False, True, False, False])], ids=["two allowed", "one allowed"])
def test_masked_actions_have_no_gradient_and_the_gradients_are_finite(mask):
    values, jacobian = masked_quantities_and_jacobian(LOGITS[0], mask, np.flatnonzero(mask)[0])
    assert np.isfinite(values).all()
    assert np.isfinite(jacobian).all()
    np.testing.assert_array_equal(np.asarray(jacobian)[:, ~mask], 0)
    if mask.sum() == 1:
        np.testing.assert_array_equal(values, np.zeros(4))
    else:
        assert (np.asarray(jacobian)[:, mask] != 0).all()


def test_each_of_several_choices_is_masked_by_its_own_stretch():
    # Two, one and two options left.
    mask = np.array([0, 1, 1, 1, 0, 1, 1], bool)
    masked, other = (MultiCategorical.masked(z[:1], mask[None], NVEC) for z in (OPTIONS, OTHER_OPTIONS))
    pieces = [np.split(row, [3, 5]) for row in (OPTIONS[0], OTHER_OPTIONS[0], mask)]
    of_allowed = [(oracles.softmax(z[m]), oracles.softmax(y[m])) for z, y, m in zip(*pieces, strict=True)]
    assert masked.entropy() == pytest.approx(sum(scipy.stats.entropy(p) for p, _ in of_allowed), rel=1e-5)
    assert masked.kl(other) == pytest.approx(sum(scipy.stats.entropy(p, q) for p, q in of_allowed), rel=1e-5)
    samples = masked.sample_from(np.asarray(MultiCategorical.draw_noise(jax.random.key(3), (10_000, 7))))
    for k, allowed in enumerate(pieces[2]):
        np.testing.assert_array_equal(np.unique(samples[:, k]), np.flatnonzero(allowed))


# One bit free, one that may only be 0, one that may only be 1.
PAIRS = np.array([True, True, True, False, False, True])


def test_a_masked_bit_is_never_what_it_may_not_be_and_adds_nothing():
    x, y = MEAN[:1], OTHER_MEAN[:1]
    masked, other = (Bernoulli.masked(z, PAIRS[None]) for z in (x, y))
    samples = masked.sample_from(np.asarray(Bernoulli.draw_noise(jax.random.key(3), (NUM_SAMPLES, 3))))
    p = scipy.special.expit(np.float64(x[0, 0]))
    assert abs(samples[:, 0].mean() - p) < SIGMAS * math.sqrt(p * (1 - p) / NUM_SAMPLES)
    assert (samples[:, 1] == 0).all()
    assert (samples[:, 2] == 1).all()
    np.testing.assert_array_equal(masked.mode(), [[x[0, 0] > 0, 0, 1]])

    free, free_other = Bernoulli(x[:, :1]), Bernoulli(y[:, :1])
    assert masked.entropy() == pytest.approx(free.entropy(), rel=1e-6)
    assert masked.kl(other) == pytest.approx(free.kl(free_other), rel=1e-6)
    assert masked.log_prob(np.array([[1, 0, 1]])) == pytest.approx(free.log_prob(np.array([[1]])), rel=1e-6)
    assert masked.log_prob(np.array([[1, 1, 1]])) < -1e8


def test_masked_bits_have_no_gradient_and_no_curvature():
    def of(z):
        masked, other = (Bernoulli.masked(x, jnp.asarray(PAIRS)) for x in (z, jnp.asarray(OTHER_MEAN[0])))
        return jnp.stack([masked.entropy(), masked.log_prob(BITS[0]), masked.kl(other), other.kl(masked)])

    for derivative in jax.jit(lambda z: (jax.jacobian(of)(z), jax.hessian(of)(z)))(MEAN[0]):
        assert np.isfinite(derivative).all()
        np.testing.assert_array_equal(derivative[..., 1:], np.zeros(derivative[..., 1:].shape))
        assert (derivative[:, *([0] * (derivative.ndim - 1))] != 0).all()


def test_the_entropy_s_slope_by_a_logit_is_minus_pi_times_log_pi_plus_entropy():
    slope = jax.jit(jax.grad(lambda z: Categorical(z).entropy().sum()))(LOGITS)
    p = oracles.softmax(LOGITS)
    entropy = scipy.stats.entropy(p, axis=-1)[:, None]
    np.testing.assert_allclose(slope, -p * (np.log(p) + entropy), atol=1e-6)


@pytest.mark.parametrize(
    "distribution",
    [Bernoulli(MEAN[:1, :1]), TanhGaussian(MEAN[:1, :1], LOG_STDS[:1, :1]), Beta(ALPHA[:1, :1], BETA[:1, :1])],
    ids=lambda value: type(value).__name__,
)
def test_slopes_of_the_entropy_are_differences_of_the_exact_one(distribution):
    slopes = jax.tree.leaves(jax.jit(jax.grad(lambda each: each.entropy().sum()))(distribution))
    leaves, structure = jax.tree.flatten(distribution)
    for index, slope in enumerate(slopes):
        above, below = (
            jax.tree.unflatten(structure, [np.float64(leaf) + step * (k == index) for k, leaf in enumerate(leaves)])
            for step in (1e-3, -1e-3)
        )
        assert slope[0, 0] == pytest.approx((exact_entropy(above, 0) - exact_entropy(below, 0)) / 2e-3, abs=2e-5)


def test_slopes_of_log_prob_are_the_score_functions():
    choice = jax.jit(jax.grad(lambda z: Categorical(z).log_prob(CHOICES).sum()))(LOGITS)
    np.testing.assert_allclose(choice, np.eye(4)[CHOICES] - oracles.softmax(LOGITS), atol=1e-6)
    bit = jax.jit(jax.grad(lambda z: Bernoulli(z).log_prob(BITS).sum()))(MEAN)
    np.testing.assert_allclose(bit, BITS - scipy.special.expit(MEAN), atol=1e-6)

    standardized = (VECTORS.astype(np.float64) - MEAN) / np.exp(LOG_STD)
    for kind in (DiagonalGaussian, TanhGaussian):

        def gaussian_log_prob(mean, log_std, kind=kind):
            return kind(mean, log_std).log_prob(VECTORS).sum()

        by_mean, by_log_std = jax.jit(jax.grad(gaussian_log_prob, argnums=(0, 1)))(MEAN, LOG_STD)
        np.testing.assert_allclose(by_mean, standardized / np.exp(LOG_STD), rtol=1e-4)
        np.testing.assert_allclose(by_log_std, (standardized**2 - 1).sum(0), rtol=1e-4, atol=1e-5)


def test_the_tanh_gaussian_s_entropy_is_within_the_stated_bounds_of_the_integral():
    mean, log_std = np.float32(np.meshgrid(np.linspace(-3, 3, 7), np.linspace(-5, 1, 13), indexing="ij"))[..., None]
    found = TanhGaussian(mean, log_std).entropy()

    def log_slope(m, s):
        # 1 - tanh(u)^2 = cosh(u)^-2; the integrand bends at u = 0.
        bend = np.clip(-m / s, -11, 11)
        weighted = lambda z: math.exp(-z * z / 2) * -2 * math.log(math.cosh(m + s * z))  # noqa: E731
        return scipy.integrate.quad(weighted, -12, 12, points=[bend], epsabs=1e-10)[0] / math.sqrt(2 * math.pi)

    std = np.exp(np.float64(log_std))
    expected = np.log(std * math.sqrt(2 * math.pi * math.e)) + np.vectorize(log_slope)(np.float64(mean), std)
    error = np.abs(found - expected[..., 0])
    assert error.max() < 2e-3
    assert error[log_std[..., 0] <= 0].max() < 1e-5


def test_a_shared_log_std_means_the_same_as_one_repeated_for_each_state():
    for kind in (DiagonalGaussian, TanhGaussian):
        shared, other = kind(MEAN, LOG_STD), kind(OTHER_MEAN, OTHER_LOG_STD)
        repeated = kind(MEAN, np.tile(LOG_STD, (6, 1)))
        for name, value in quantities(shared, other, VECTORS).items():
            np.testing.assert_allclose(quantities(repeated, other, VECTORS)[name], value, rtol=1e-6, err_msg=name)
        # But what differs between states is an output of a network, and may be rounded.
        tolerance = on_jax(shared).log_prob_tolerance()
        assert tolerance < on_jax(repeated).log_prob_tolerance() < tolerance + 1e-4


@pytest.mark.parametrize("name", ON_NUMPY)
def test_numpy_and_jax_give_the_same_numbers_in_single_precision(name):
    on_numpy, compiled = quantities(*CASES[name]), compiled_quantities(*CASES[name])
    for quantity in on_numpy:
        leaves, others = jax.tree.leaves(on_numpy[quantity]), jax.tree.leaves(compiled[quantity])
        for leaf, other in zip(leaves, others, strict=True):
            assert isinstance(leaf, np.ndarray)
            assert leaf.dtype == other.dtype or (quantity == "mode" and leaf.dtype.kind == other.dtype.kind == "i")
            assert leaf.dtype in (np.float32, np.int32, np.int64)
            np.testing.assert_allclose(leaf, other, rtol=2e-6, atol=1e-6, err_msg=quantity)


@pytest.mark.parametrize("name", ON_NUMPY)
def test_the_same_noise_is_the_same_sample_on_numpy_and_on_jax(name):
    distribution = CASES[name][0]
    noise = draw_noise(distribution, jax.random.key(4), (6,))
    on_numpy = distribution.sample_from(jax.tree.map(np.asarray, noise))
    elsewhere = on_jax(distribution).sample_from(noise)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(noise))
    for leaf, other in zip(jax.tree.leaves(on_numpy), jax.tree.leaves(elsewhere), strict=True):
        assert isinstance(leaf, np.ndarray)
        np.testing.assert_allclose(leaf, other, rtol=1e-6)
        assert leaf.dtype == other.dtype or leaf.dtype.kind == other.dtype.kind == "i"


def test_masking_keeps_single_precision_on_numpy_and_on_jax():
    for xp in (np, jnp):
        logits, mask = xp.asarray(LOGITS), xp.asarray(np.tile(MASK, (6, 1)))
        assert Categorical.masked(logits, mask).logits.dtype == np.float32
        assert MultiCategorical.masked(logits, mask, (2, 2)).logits.dtype == np.float32
        assert Bernoulli.masked(logits[:, :2], mask).logits.dtype == np.float32


def test_extreme_logits_give_finite_numbers():
    extreme = jnp.array([[0.0, -200.0, -1e9], [1e8, 0.0, -1e8]])
    found = compiled_quantities(Categorical(extreme), Categorical(extreme[::-1]), jnp.array([1, 2], jnp.int32))
    assert all(np.isfinite(value).all() for value in found.values())
    np.testing.assert_allclose(found["log_prob"], [-200, -2e8])
    np.testing.assert_array_equal(found["entropy"], [0, 0])


@jax.jit
def with_derivatives(distribution, other, action):
    """All quantities, the gradient of their sum, and its Hessian's product with a vector of ones."""

    def total(pair):
        found = quantities(*pair, action)
        return sum(found[name].sum() for name in ("log_prob", "entropy", "kl"))

    pair = (distribution, other)
    ones = jax.tree.map(jnp.ones_like, pair)
    return quantities(*pair, action), *jax.jvp(jax.grad(total), (pair,), (ones,))


EXTREME_LOGITS = np.float32([[1e4, -1e4, 0, -1e9], [-1e4, 1e4, 0, 0], [0, 0, 1e4, -1e9], [0, 0, 0, 0]])
EXTREME_BITS = np.float32([[1e4, -1e4, 1e9, -1e9], [-1e4, 1e4, 0, 0], [0, 0, 1e9, -1e9], [0, 20, -20, 100]])
EXTREME_MEAN = np.float32([[-5, 0, 5, 20], [0, 0, 0, 0], [1, -1, 1, -1], [20, -20, 20, -20]])
EXTREME_LOG_STD = np.float32([[-20, 2, -20, 2], [2, -20, 2, -20], [2, 2, 2, 2], [-20, -20, -20, -20]])
EXTREME_VECTORS = np.float32([[20, -20, 20, -20]] * 4)
EXTREME_SHAPES = np.float32([[1, 1, 1e4, 1e4], [1e4, 1, 1, 1e4], [1, 2, 3, 4], [1, 1, 1, 1]])
EXTREME_CHOICES = np.int32([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("distribution", "other", "action"),
    [
        (Categorical(EXTREME_LOGITS), Categorical(EXTREME_LOGITS[::-1]), EXTREME_CHOICES),
        (
            MultiCategorical(EXTREME_LOGITS, (2, 2)),
            MultiCategorical(EXTREME_LOGITS[::-1], (2, 2)),
            np.int32([[0, 1]] * 4),
        ),
        (Bernoulli(EXTREME_BITS), Bernoulli(EXTREME_BITS[::-1]), np.int32([[0, 1, 0, 1]] * 4)),
        (
            DiagonalGaussian(EXTREME_MEAN, EXTREME_LOG_STD),
            DiagonalGaussian(EXTREME_MEAN[::-1], EXTREME_LOG_STD[::-1]),
            EXTREME_VECTORS,
        ),
        (
            TanhGaussian(EXTREME_MEAN, EXTREME_LOG_STD),
            TanhGaussian(EXTREME_MEAN[::-1], EXTREME_LOG_STD[::-1]),
            EXTREME_VECTORS,
        ),
        (
            Beta(EXTREME_SHAPES, EXTREME_SHAPES[:, ::-1]),
            Beta(EXTREME_SHAPES[::-1], EXTREME_SHAPES),
            np.float32([[1e-6, 0.3, 0.9, 1 - 1e-6]] * 4),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_extreme_parameters_give_finite_numbers_gradients_and_curvatures(distribution, other, action):
    found = with_derivatives(distribution, other, action)
    for path, leaf in jax.tree.leaves_with_path(found):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert np.isfinite(on_jax(distribution).log_prob_tolerance())


def test_far_out_the_tanh_gaussian_s_correction_is_linear():
    # 1 - tanh(u)^2 -> 4 exp(-2 |u|), where 1 - tanh(20)^2 is zero in single precision.
    u = np.float32([[20.0, -20.0]])
    normal = scipy.stats.norm.logpdf(0)
    found = TanhGaussian(u, np.zeros(2, np.float32)).log_prob(u)
    np.testing.assert_allclose(found, 2 * (normal - 2 * math.log(2) + 40), rtol=1e-6)


@pytest.mark.parametrize("name", [*CASES, "narrow gaussian"])
def test_rounding_stays_within_the_stated_tolerance(name):
    narrow = DiagonalGaussian(MEAN, np.full(3, -4.0, np.float32))
    close = (narrow, GAUSSIAN[1], MEAN + VECTORS * np.exp(np.float32(-4)))
    distribution, other, action = CASES.get(name, close)
    tolerance = on_jax(distribution).log_prob_tolerance()
    # Half of it from the exact number, so that any two lie no further apart.
    error = compiled_quantities(distribution, other, action)["log_prob"] - exact_log_prob(distribution, action)
    assert np.abs(error).max() <= tolerance / 2
    # Still tight enough to notice an action moved by a thousandth of a deviation at three deviations out.
    assert tolerance < 3e-3


@pytest.mark.parametrize("log_std", [-4.0, -2.0, 0.0])
@pytest.mark.parametrize("size", [1.0, 40.0, 400.0])
def test_the_tolerance_allows_the_rounding_of_large_means(size, log_std):
    distribution = DiagonalGaussian(size * MEAN, np.full((6, 3), log_std, np.float32))
    # As far as another order of summation over 64 features moves a mean of that size.
    rounded = DiagonalGaussian(distribution.mean * np.float32(1 + 4 * 2**-23), distribution.log_std)
    action = distribution.sample_from(VECTORS)
    drift = np.abs(distribution.log_prob(action) - rounded.log_prob(action)).max()
    assert drift <= on_jax(distribution).log_prob_tolerance()


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, 1e6])
def test_the_tolerance_allows_the_rounding_of_large_beta_parameters(size):
    rows = np.random.default_rng(0)
    alpha, beta = np.float32(1 + size * rows.uniform(0.01, 1.0, size=(2, 5000, 2)))
    action = np.float32(np.clip(rows.beta(alpha, beta), 1e-6, 1 - 1e-6))
    rounded = Beta(alpha * np.float32(1 + 4 * 2**-23), beta * np.float32(1 - 4 * 2**-23))
    log_prob = jax.jit(Beta.log_prob)
    drift = np.abs(log_prob(Beta(alpha, beta), action) - log_prob(rounded, action)).max()
    assert drift <= on_jax(Beta(alpha, beta)).log_prob_tolerance()


@pytest.mark.parametrize("kind", [Categorical, Bernoulli])
def test_the_tolerance_grows_with_the_logits_of_what_is_allowed(kind):
    logits = np.float32(400 * LOGITS)
    tolerance = on_jax(kind(logits)).log_prob_tolerance()
    assert tolerance > 2e-4
    mask = np.ones((6, 4 if kind is Categorical else 8), bool)
    mask[:, 0] = False
    masked = on_jax(kind.masked(logits, mask)).log_prob_tolerance()
    assert 1e-4 < masked <= tolerance


def tolerance_by_hand(distribution, rounding):
    """What the docstrings of `log_prob_tolerance` derive, in double precision."""
    match distribution:
        case Categorical():
            return 1e-4 + 2 * (2e-6 + rounding * np.abs(distribution.logits).max())
        case MultiCategorical():
            return len(distribution.nvec) * tolerance_by_hand(Categorical(distribution.logits), rounding)
        case Bernoulli():
            return distribution.logits.shape[-1] * tolerance_by_hand(Categorical(distribution.logits), rounding)
        case Product():
            return sum(tolerance_by_hand(part, rounding) for part in distribution.parts)
        case Beta(alpha=alpha, beta=beta):
            shapes, both = np.float64(np.concatenate([alpha, beta], axis=-1)), np.float64(alpha) + beta
            squares = (2e-6 + rounding * shapes) ** 2 * (1 / shapes + 1 / shapes**2)
            x = np.sqrt(squares.sum(axis=-1).max())
            return 1e-4 + 4e-7 * (both * np.log(both)).sum(axis=-1).max() + 5 * x + x**2 / 2
        case DiagonalGaussian(mean=mean, log_std=log_std) | TanhGaussian(mean=mean, log_std=log_std):
            of_log_std = 2e-6 + rounding * np.abs(log_std).max() if log_std.ndim == mean.ndim else 0.0
            of_mean = 2e-6 + rounding * np.abs(mean).reshape((-1, mean.shape[-1])).max(axis=0)
            narrowest = np.float64(log_std).reshape((-1, mean.shape[-1])).min(axis=0)
            x = np.linalg.norm(of_mean * np.exp(of_log_std - narrowest))
            return 1e-4 + 5 * x + x**2 / 2 + 24 * of_log_std


@pytest.mark.parametrize("rounding", [1e-6, 2.0**-7, 0.3])
@every_case
def test_tolerances_are_those_that_are_derived_by_hand(name, rounding):
    distribution = in_three_rows(CASES[name][0])
    found = on_jax(distribution).log_prob_tolerance(rounding)
    np.testing.assert_allclose(found, tolerance_by_hand(distribution, rounding), rtol=1e-5)


def test_what_is_forbidden_widens_no_tolerance():
    logits = np.float32([[0.5, -0.25, 0.125]])
    masked = Categorical.masked(logits, np.array([[True, True, False]]))
    np.testing.assert_allclose(on_jax(masked).log_prob_tolerance(0.1), 1e-4 + 2 * (2e-6 + 0.1 * 0.5), rtol=1e-5)


def in_three_rows(tree):
    """A batch of 6 as one of (3, 2); what all states share stays."""
    return jax.tree.map(lambda leaf: leaf.reshape((3, 2, *leaf.shape[1:])) if len(leaf) == 6 else leaf, tree)


@every_case
def test_a_batch_of_two_dimensions_has_the_numbers_of_one(name):
    alone, folded = quantities(*CASES[name]), quantities(*in_three_rows(CASES[name]))
    for path, leaf in jax.tree.leaves_with_path(in_three_rows(alone)):
        found = dict(jax.tree.leaves_with_path(folded))[path]
        np.testing.assert_allclose(found, leaf, rtol=1e-6, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("kind", [DiagonalGaussian, TanhGaussian])
@pytest.mark.parametrize("log_std", [-20.0, -16.0, -10.0, -5.0, 0.0, 2.0])
def test_the_tolerance_allows_means_rounded_differently_however_narrow_the_distribution(kind, log_std):
    log_stds = np.full((6, 3), log_std, np.float32)
    distribution = kind(MEAN, log_stds)
    action = distribution.sample_from(VECTORS)
    rounded = kind(MEAN + np.float32(1e-6), log_stds)
    drift = np.abs(distribution.log_prob(action) - rounded.log_prob(action)).max()
    assert drift <= on_jax(distribution).log_prob_tolerance()


def test_a_bit_is_set_where_its_logit_and_its_noise_come_to_more_than_zero():
    bits = Bernoulli(np.float32([0.5, 0.5, -0.5, -0.5])).sample_from(np.float32([-0.6, -0.4, 0.6, 0.4]))
    np.testing.assert_array_equal(bits, [0, 1, 1, 0])


def test_a_bit_that_is_as_likely_as_not_is_zero_by_mode():
    np.testing.assert_array_equal(Bernoulli(np.float32([0.0, 1e-6, -1e-6])).mode(), [0, 1, 0])


def test_what_is_computed_in_bfloat16_may_be_rounded_to_a_neighbour():
    assert float(jnp.finfo(jnp.bfloat16).eps) == BFLOAT16
