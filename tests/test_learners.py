"""Learners on their own: gradient, start, regression against brute force, bounds, resume, and what must not matter."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betaln, digamma

from lit_atex import reward_model
from lit_atex.beta_net import BetaNet, Within
from lit_atex.beta_policy import BetaPolicy
from lit_atex.exposure import TrainingState
from lit_atex.learners import (
    GRID,
    Learner,
    Matured,
    Reinforce,
    Surrogate,
    Window,
    entropy,
    log_beta,
    shares,
    uphill,
)
from lit_atex.reward_model import effect, polynomials, undone, within_reach
from lit_atex.types import StepFeedback, Verdict, seeded

FEATURES = 3


def bound(
    learner: Learner, mean: float = 0.5, concentration: float = 4.0, seed: int = 0, margin: float = 0.0
) -> Learner:
    learner.bind(BetaNet(FEATURES, 8, mean, concentration, seed, margin), horizon=1, discount=1.0)
    return learner


def decisions(count: int, seed: int = 0, scale: float = 1.0, offset: float = 0.0, best: float = 0.7) -> list[Matured]:
    random = seeded(seed, "decisions")
    found = []
    for _ in range(count):
        state, u = random.standard_normal(FEATURES).tolist(), float(random.uniform(0.01, 0.99))
        found.append(Matured(state, u, offset + scale * (-4 * (u - best) ** 2 + 0.3 * float(random.standard_normal()))))
    return found


def window(m: Matured) -> Window:
    """At J = 1 a decision earns what its window gains."""
    return Window(*m)


def feed(learner: Learner, data: list[Matured]) -> None:
    for m in data:
        learner.learn([m], window(m), m.state)


def parameters(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.policy.state_dict().values()])


@given(st.floats(0.2, 0.8), st.floats(6, 50), st.integers(0, 5))
def test_the_first_policy_is_as_configured_whatever_the_state(mean: float, concentration: float, seed: int) -> None:
    net = BetaNet(FEATURES, 8, mean, concentration, seed)
    a, b = net(torch.randn(5, FEATURES, dtype=torch.float64))
    assert a.tolist() == pytest.approx([mean * concentration] * 5)
    assert b.tolist() == pytest.approx([(1 - mean) * concentration] * 5)


def test_a_rising_statistic_is_told_apart_early_and_late() -> None:
    net = BetaNet(2, 8, 0.5, 4.0, 0)
    for k in range(100):
        net.observe([k / 99, math.nan if k % 2 else 5.0])
    z = net.standardise([[0.0, 5.0], [1.0, math.nan]])
    assert z[:, 0].tolist() == pytest.approx([-math.sqrt(3), math.sqrt(3)], rel=0.02)
    assert z[:, 1].tolist() == [0.0, 0.0]


def test_reinforce_follows_the_score_function() -> None:
    """d/da log Beta(u; a, b) = log u - digamma(a) + digamma(a + b); the rest is autograd."""
    first, then = decisions(2, seed=3)
    learner = bound(Reinforce(entropy=0.0))
    learner.learn([first], None, first.state)
    with torch.no_grad():
        learner.policy.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert (learner.baseline, learner.variance) == (first.reward, 0.0)
    before = {k: v.clone() for k, v in learner.policy.state_dict().items()}
    learner.learn([then], None, then.state)
    got = {k: p.grad.clone() for k, p in learner.policy.named_parameters()}

    advantage = math.copysign(1.0, then.reward - first.reward)  # against an SD that is known from itself alone
    net = BetaNet(FEATURES, 8, 0.5, 4.0, 0)
    net.load_state_dict(before)
    net.observe(then.state)
    a, b = net(torch.tensor([then.state], dtype=torch.float64))
    a.retain_grad(), b.retain_grad()
    density = torch.distributions.Beta(a, b).log_prob(torch.tensor([then.action], dtype=torch.float64))
    (-advantage * density.sum()).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-9, atol=1e-12)
    alpha, beta = a.item(), b.item()
    by_hand = math.log(then.action) - digamma(alpha) + digamma(alpha + beta)
    assert a.grad.item() == pytest.approx(-advantage * by_hand, rel=1e-9)
    by_hand = math.log1p(-then.action) - digamma(beta) + digamma(alpha + beta)
    assert b.grad.item() == pytest.approx(-advantage * by_hand, rel=1e-9)


def test_advantages_have_the_size_of_a_deviation_from_the_first() -> None:
    """Independent rewards of any scale: their root mean square is about 1 at each decision, the second included."""
    rng, advantages = np.random.default_rng(0), []
    for _ in range(2000):
        learner = Reinforce()
        advantages.append([learner.advantage(100 * reward) for reward in rng.standard_normal(12)])
    size = np.sqrt(np.square(advantages).mean(0))
    assert size[0] == 0
    assert (abs(size[1:] - 1) < 0.15).all()


def test_a_policy_that_has_become_flat_still_follows_what_it_learns() -> None:
    """Found in a real run: once it was near Beta(1, 1) it stayed there for 160 steps, whatever came."""
    learner = bound(Surrogate(memory=30.0))
    learner.policy.observe([0.0] * FEATURES)
    for _ in range(200):  # as while nothing is known: entropy alone
        learner.ascend(learner.density(torch.zeros(FEATURES, dtype=torch.float64)).entropy())
    a, b = (x.item() for x in learner.policy(torch.zeros(FEATURES, dtype=torch.float64)))
    assert a + b == pytest.approx(2.5, abs=0.01)
    feed(learner, decisions(40, seed=3, best=0.1))
    a, b = (x.item() for x in learner.policy(torch.zeros(FEATURES, dtype=torch.float64)))
    assert a / (a + b) < 0.25


@pytest.mark.parametrize("start", [(0.3, 0.4), (-0.2, 0.4), (1.1, -0.3), (0.6, 1.2)])
def test_the_surrogate_climbs_along_autograds_gradient(start: tuple[float, float]) -> None:
    random = seeded(0, "climb")
    value, temperature = random.standard_normal(64), 0.3
    net = BetaNet(FEATURES, 8, 0.5, 4.0, 0)
    with torch.no_grad():
        net.last.weight.normal_(generator=torch.Generator().manual_seed(1))
        net.last.bias.copy_(torch.tensor(start, dtype=torch.float64))
    for state in random.standard_normal((5, FEATURES)).tolist():
        net.observe(state)
    now = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    policy = torch.distributions.Beta(*net(now))
    share = policy.log_prob(torch.from_numpy(GRID)).softmax(0)
    (-(share @ torch.from_numpy(value)) - temperature * policy.entropy()).backward()
    expected = [p.grad for p in net.parameters()]
    net.zero_grad()
    net.slope(net.standardise(now), lambda a, b: uphill(a, b, value, temperature))
    assert max(float(grad.abs().max()) for grad in expected) > 1e-3
    for got, grad in zip(net.parameters(), expected):
        torch.testing.assert_close(got.grad, grad, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(shares(policy.concentration1.item(), policy.concentration0.item()), share.detach())


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_the_policy_stays_in_its_range_and_can_come_back(mode: float, width: float) -> None:
    net = BetaNet(1, 4, 0.5, 4.0, 0)
    with torch.no_grad():
        net.last.bias.copy_(torch.tensor([mode, width], dtype=torch.float64))
    out = Within.apply(net.last.bias)
    (out * torch.tensor([0.3, -0.7], dtype=torch.float64)).sum().backward()  # descent: mode down, width up
    assert net.last.bias.grad.tolist() == pytest.approx([0.0 if mode < 0 else 0.3, 0.0 if width > 1 else -0.7])
    a, b = (x.item() for x in net(torch.tensor([0.0], dtype=torch.float64)))
    assert a >= 1
    assert b >= 1
    assert 0.5 - 1e-9 <= a + b - 2 <= 100 + 1e-9


def test_polynomials_are_orthonormal() -> None:
    u = (np.arange(20000) + 0.5) / 20000
    values = np.concatenate([np.ones((20000, 1)), polynomials(u)], axis=1)
    np.testing.assert_allclose(values.T @ values / 20000, np.eye(4), atol=1e-6)


def brute_force(
    z: np.ndarray,
    u: np.ndarray,
    levels: np.ndarray,
    gains: np.ndarray,
    now: np.ndarray,
    memory: float,
    horizon: int,
    discount: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each hypothesis as a Gaussian process over the gains: kernels inverted, nothing filtered or integrated out."""
    skip = int(np.isnan(gains).sum())
    y, n = gains[skip:], len(gains) - skip
    t = np.arange(n) / (n - 1)
    trend = np.stack([np.ones(n), 2**0.5 * np.cos(np.pi * t), 2**0.5 * np.cos(2 * np.pi * t)], 1)
    common = trend @ np.diag([100.0, 0.01, 0.01]) @ trend.T + 0.01 * z[skip:] @ z[skip:].T / FEATURES
    common += 0.09 * np.outer(levels[skip:], levels[skip:])
    older = np.diag(np.exp((n - np.arange(n + 1)) / memory))[1:, 1:]
    worth = sum(discount**i for i in range(horizon))
    shares, means, covariances = [], [], []
    for theta in reward_model.THETAS:
        last = np.eye(n) - theta * np.eye(n, k=-1)
        noise = last @ older @ last.T
        noise[0, 0] += theta**2
        for size in reward_model.EFFECTS:
            for f in range(-1, FEATURES):
                alone = np.diag([*reward_model.PRIOR] * horizon)
                moving = np.diag(reward_model.MOVED_PRIOR) * (f >= 0)
                prior = size**2 * np.block([[alone, np.zeros((len(alone), 2))], [np.zeros((2, len(alone))), moving]])
                x = np.zeros((len(u), len(prior)))
                for k in range(len(u)):
                    for i in range(min(horizon, k + 1)):
                        p = polynomials(u[k - i])
                        x[k, 3 * i : 3 * i + 3] += p
                        x[k, -2:] += p[:2] * z[k - i, f] / horizon**0.5
                at = np.concatenate([discount**i * polynomials(GRID) for i in range(horizon)], 1)
                at = np.concatenate([at, worth / horizon**0.5 * polynomials(GRID)[:, :2] * now[f]], 1)
                x = x[skip:]
                k = common + x @ prior @ x.T + noise
                inverse = np.linalg.inv(k)
                shape, scale = 1 + n / 2, 1 + y @ inverse @ y / 2
                weight = 0.8 if f < 0 else 0.2 * 0.5**f / sum(0.5**i for i in range(FEATURES))
                shares.append(np.log(weight) - np.linalg.slogdet(k)[1] / 2 - shape * np.log(scale))
                means.append(at @ prior @ x.T @ inverse @ y)
                covariances.append((at @ prior @ at.T - at @ prior @ x.T @ inverse @ x @ prior @ at.T) * scale / shape)
    share = np.exp(np.array(shares) - max(shares))
    share /= share.sum()
    mean = share @ np.array(means)
    spread = [c + np.outer(m - mean, m - mean) for c, m in zip(covariances, means)]
    relevance = share.reshape(-1, FEATURES + 1).sum(0)[1:]
    return mean, np.einsum("h,hij->ij", share, np.array(spread)), relevance


@pytest.mark.parametrize(("horizon", "discount"), [(1, 1.0), (3, 0.9), (8, 0.7)])
@pytest.mark.parametrize(("count", "skip"), [(4, 0), (25, 0), (12, 2)])
def test_the_reward_model_is_the_closed_form(count: int, skip: int, horizon: int, discount: float) -> None:
    data = decisions(count, seed=count)
    now = np.array([0.5, -1.0, 2.0])
    arrays = (np.array([list(m.state) for m in data]), np.array([m.action for m in data]))
    levels = seeded(0, "levels").standard_normal(count)
    gains = np.array([math.nan] * skip + [m.reward for m in data[skip:]])
    found = effect(*arrays, levels, gains, now, 30.0, horizon, discount, GRID)
    for got, expected in zip(found, brute_force(*arrays, levels, gains, now, 30.0, horizon, discount)):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_what_the_policy_is_rewarded_by_reaches_its_model() -> None:
    """Horizon, discount, memory, and gains in spite of a reading that is missing."""
    policy = BetaPolicy(Surrogate(memory=7), horizon=3, discount=0.5, statistics=["loss", "mismatch", "share_cut"])
    random, rolled = seeded(0, "rewarded"), []
    progress = [None, *random.standard_normal(16).tolist()]
    progress[6] = None
    for step, reading in enumerate(progress):
        policy.begin_window(TrainingState(step, 20, 0, ["p"], ["1"], None), reading)
        rolled.append(policy.state_dict()["open"])
        loss, mismatch = random.standard_normal(2).tolist()
        policy.update(StepFeedback(step, ["p"], ["1"], [0.5], [Verdict.WRONG], loss, mismatch, 1.0, 1.0, 5.0, 0.0, 10))
    gains = np.array([math.nan, *np.diff(progress[1:6]), 0.0, progress[7] - progress[5], *np.diff(progress[7:])])
    levels = np.array([0.0, *np.cumsum(np.nan_to_num(gains))[:-1]])
    names = ("loss", "mismatch", "share_cut")
    states = [[math.nan if held[name] is None else held[name] for name in names] for held, _ in rolled]
    z, u = policy.policy.standardise(states), np.array([action for _, action in rolled])
    given = (z[:-1], u[:-1], (levels - levels.mean()) / levels.std())
    scaled = (gains - np.nanmean(gains)) / np.nanstd(gains)
    mean, covariance, relevance = brute_force(*given, scaled, z[-1], 7.0, 3, 0.5)
    learner = policy.learner
    assert isinstance(learner, Surrogate)
    found = learner.believe(states[-1])
    np.testing.assert_allclose(found[0], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[1], np.sqrt(np.diagonal(covariance)), rtol=1e-5)
    np.testing.assert_allclose(found[2][:2], relevance[:2], rtol=1e-5)
    assert relevance[2] > 0 == found[2][2]  # what never varied moves nothing
    assert policy.scalars()["baseline"] == pytest.approx(np.nanmean(gains) * 1.75)


@given(st.integers(1, 40), st.floats(0, 0.99))
def test_noise_of_readings_is_undone(count: int, theta: float) -> None:
    e = seeded(count, "noise").standard_normal((count, 2))
    x = e - theta * np.concatenate([np.zeros((1, 2)), e[:-1]])
    np.testing.assert_allclose(undone(x, theta), e, atol=1e-9)


def test_noisy_readings_of_a_level_tell_what_their_differences_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student like those of results/slower: it goes towards a level of each exposure's own, 0.3 has the best."""
    off: list[list[float]] = []
    for thetas in (reward_model.THETAS, (0.0,)):
        monkeypatch.setattr(reward_model, "THETAS", thetas)
        off.append([])
        for seed in range(40):
            random = seeded(seed, "readings")
            level, learner = [0.0], bound(Surrogate())
            for u in random.uniform(0.01, 0.99, 60).tolist():
                level.append(0.86 * level[-1] - 0.14 * 1.6 * (u - 0.3) ** 2)
                learner.windows.append(Window([0.0] * FEATURES, u, 0.0))
            gains = np.diff(np.array(level) + 0.044 * random.standard_normal(61))  # 128 rollouts, half of them right
            mean, _, _ = learner.believe([0.0] * FEATURES, gains)
            off[-1].append(abs(GRID[mean.argmax()] - 0.3))
    assert np.mean(off[0]) < 0.11
    assert np.mean(off[0]) < 0.8 * np.mean(off[1])


def test_the_surrogate_finds_the_best_exposure_and_the_statistic_that_moves_it() -> None:
    learner = bound(Surrogate())
    feed(learner, decisions(100))
    a, b = learner.policy(torch.zeros(FEATURES, dtype=torch.float64))
    assert a.item() / (a + b).item() == pytest.approx(0.7, abs=0.08)

    moved = [m._replace(reward=-4 * (m.action - 0.5 - 0.2 * m.state[1]) ** 2) for m in decisions(60)]
    learner = bound(Surrogate())
    feed(learner, moved)
    _, _, relevance = learner.believe([0.0, 1.0, 0.0])
    assert relevance[1] > 0.9
    best = [GRID[learner.believe([0.0, z, 0.0])[0].argmax()] for z in (-1.0, 1.0)]
    assert best == pytest.approx([0.3, 0.7], abs=0.1)


@given(st.floats(1, 100), st.floats(1, 100))
def test_entropy_and_normaliser_are_those_of_scipy(a: float, b: float) -> None:
    assert entropy(a, b) == pytest.approx(stats.beta(a, b).entropy(), rel=1e-9, abs=1e-9)
    assert log_beta(a, b) == pytest.approx(betaln(a, b), rel=1e-12, abs=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=FEATURES, max_size=FEATURES), st.integers(0, 3))
def test_the_policy_is_the_same_in_numpy(state: list[float], seed: int) -> None:
    net = BetaNet(FEATURES, 8, 0.5, 4.0, seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        net.observe(torch.randn(FEATURES, generator=generator).tolist())
    with torch.no_grad():
        net.last.weight.normal_(generator=generator)
    now = torch.tensor(state, dtype=torch.float64)
    assert net.at(net.standardise(now)) == pytest.approx([x.item() for x in net(now)], rel=1e-12)


def test_exposures_beyond_an_end_are_that_end() -> None:
    net = BetaNet(FEATURES, 8, 0.5, 4.0, 0, margin=0.25)
    samples = np.array([0.0, 1 / 6, 1 / 3, 0.5, 5 / 6, 1.0])
    np.testing.assert_allclose(net.exposure(samples), [0.0, 0.0, 0.25, 0.5, 1.0, 1.0], atol=1e-12)
    data = decisions(60, best=1.0)
    learner = bound(Surrogate(), margin=0.25)
    feed(learner, data)
    mean, spread, _ = learner.believe([0.0] * FEATURES)
    np.testing.assert_allclose(mean[GRID > 5 / 6], mean[-1])  # all of them are full exposure
    np.testing.assert_allclose(spread[GRID < 1 / 6], spread[0])
    assert mean[-1] - mean.min() > 3 * spread.mean()
    # The same decisions, by their exposures, are believed the same of.
    plain = bound(Surrogate())
    shown = learner.policy.exposure(np.array([m.action for m in data]))
    feed(plain, [m._replace(action=float(u)) for m, u in zip(data, shown)])
    expected = plain.believe([0.0] * FEATURES)[0]
    inside = (GRID > 1 / 6) & (GRID < 5 / 6)
    there = np.interp(learner.policy.exposure(GRID[inside]), GRID, expected)
    np.testing.assert_allclose(mean[inside][1:-1], there[1:-1], atol=2e-3)


def test_a_policy_that_reaches_beyond_an_end_holds_it_while_it_explores() -> None:
    means = []
    for margin in (0.0, 0.25):
        learner = bound(Surrogate(), margin=margin)
        for m in decisions(80, best=1.0):
            reward = -4 * float(learner.policy.exposure(np.array(m.action)) - 1) ** 2
            feed(learner, [m._replace(reward=reward + 0.3 * m.state[0])])
        a, b = (x.item() for x in learner.policy(torch.zeros(FEATURES, dtype=torch.float64)))
        means.append(shares(a, b) @ learner.policy.exposure(GRID))
    assert means[0] < means[1]
    assert means[1] > 0.9


@pytest.mark.parametrize("spread", [0.0, 7.0])
def test_a_constant_reward_leaves_the_policy_broad(spread: float) -> None:
    learner = bound(Surrogate())
    # The second: equal to rounding, as the rewards of a progress that rises by 0.1 in each window.
    feed(learner, [m._replace(reward=1.0 + 1e-16 * spread * k) for k, m in enumerate(decisions(60))])
    a, b = (x.item() for x in learner.policy(torch.zeros(FEATURES, dtype=torch.float64)))
    assert a + b < 6


def test_a_trend_in_time_is_not_an_effect_of_exposure() -> None:
    data = [m._replace(reward=m.reward + 5 * math.exp(-k / 30)) for k, m in enumerate(decisions(100))]
    learner = bound(Surrogate())
    feed(learner, data)
    assert GRID[learner.believe([0.0] * FEATURES)[0].argmax()] == pytest.approx(0.7, abs=0.1)


def test_outliers_do_not_rule() -> None:
    random = seeded(0, "tails")
    data = [m._replace(reward=-4 * (m.action - 0.7) ** 2 + 0.3 * float(random.standard_t(3))) for m in decisions(150)]
    learner = bound(Surrogate())
    feed(learner, data)
    assert GRID[learner.believe([0.0] * FEATURES)[0].argmax()] == pytest.approx(0.7, abs=0.12)


@pytest.mark.parametrize("size", [1e3, -1e8])
def test_one_gross_outlier_does_not_silence_the_others(size: float) -> None:
    data = decisions(60)
    data[20] = data[20]._replace(reward=size)
    learner = bound(Surrogate())
    feed(learner, data)
    mean, spread, _ = learner.believe([0.0] * FEATURES)
    assert GRID[mean.argmax()] == pytest.approx(0.7, abs=0.1)
    assert mean.max() - mean.min() > 3 * spread.mean()
    others = [m.reward for m in data if m.reward != size]
    logged = learner.learn([], None, [0.0] * FEATURES)["baseline"]
    assert min(others) < logged < max(others)
    assert logged == pytest.approx(within_reach(np.array([m.reward for m in data])).mean())


def test_rewards_are_within_reach_of_their_median() -> None:
    random = seeded(0, "reach")
    usual = random.standard_normal(1000)
    assert np.array_equal(within_reach(usual), usual)
    far = within_reach(np.array([*usual, 50.0]))
    assert far[:-1].tolist() == usual.tolist()
    robust = stats.median_abs_deviation([*usual, 50.0], scale="normal")
    assert far[-1] == pytest.approx(np.median([*usual, 50.0]) + 6 * robust, rel=1e-4)
    # Nor does an outlier say what rounding is.
    assert within_reach(np.array([*usual, 1e13])).max() == pytest.approx(6 * robust, rel=0.02)
    # Of which more than half are equal, as a coarse accuracy's, an outlier is known by the others.
    coarse = np.array([*np.zeros(40), *np.ones(20)])
    assert np.array_equal(within_reach(coarse), coarse)
    assert within_reach(np.array([*coarse, -100.0])).min() == pytest.approx(-6 * 1.4826)
    # More than half are equal, exactly or to rounding: the others are no outliers.
    for noise in (0.0, 1e-17):
        few = np.array([*(noise * usual[:30]), *np.full(10, 0.1)])
        assert np.array_equal(within_reach(few), few)


@pytest.mark.parametrize(
    ("kind", "scale", "offset"),
    [(Surrogate, 0.01, 0.0), (Surrogate, 100.0, 0.0), (Reinforce, 100.0, 0.0), (Reinforce, 0.01, -3.0)],
)
def test_scale_and_offset_of_the_reward_do_not_matter(kind: type, scale: float, offset: float) -> None:
    plain, other = bound(kind()), bound(kind())
    feed(plain, decisions(30))
    feed(other, decisions(30, scale=scale, offset=offset))
    torch.testing.assert_close(parameters(plain), parameters(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [50.0, -3.0])
def test_what_every_window_gains_is_not_an_effect_of_exposure(offset: float) -> None:
    learner = bound(Surrogate())
    feed(learner, decisions(60, offset=offset))
    assert GRID[learner.believe([0.0] * FEATURES)[0].argmax()] == pytest.approx(0.7, abs=0.1)


NUMBER = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([1e308, -1e308, 0.0])
STATE = st.lists(NUMBER, min_size=FEATURES, max_size=FEATURES)
DECISION = st.tuples(STATE, st.floats(1e-6, 1 - 1e-6), NUMBER)
CALL = st.tuples(st.lists(DECISION, max_size=3), st.none() | DECISION, STATE)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [Surrogate, Reinforce])
@settings(max_examples=40, deadline=None)
@given(calls=st.lists(CALL, max_size=8))
def test_whatever_comes_the_policy_stays_a_policy(kind: type, calls: list[Any]) -> None:
    learner = bound(kind())
    for matured, ended, state in calls:
        scalars = learner.learn([Matured(*m) for m in matured], ended and Window(*ended), state)
        assert all(math.isfinite(x) for x in scalars.values())
        a, b = (x.item() for x in learner.policy(torch.tensor(state, dtype=torch.float64)))
        assert 1 <= a < 1e6
        assert 1 <= b < 1e6


def test_rewards_that_are_no_numbers_are_passed_over() -> None:
    plain, other = bound(Reinforce()), bound(Reinforce())
    for m in decisions(12):
        plain.learn([m], None, m.state)
        other.learn([m._replace(reward=math.nan), m, m._replace(reward=-math.inf)], None, m.state)
    assert torch.equal(parameters(plain), parameters(other))


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -1e300])
def test_gains_that_are_no_numbers_say_nothing(unknown: float) -> None:
    data = decisions(30)
    learner = bound(Surrogate())
    feed(learner, [m._replace(reward=unknown) if k in (0, 1, 20) else m for k, m in enumerate(data)])
    gains = learner.gains()
    assert np.isnan(gains[:2]).all()  # before the first reading
    assert gains[20] == 0.0  # progress as it was; the next gain has it
    others = [k for k in range(2, 30) if k != 20]
    assert gains[others].tolist() == [data[k].reward for k in others]
    assert GRID[learner.believe([0.0] * FEATURES)[0].argmax()] == pytest.approx(0.7, abs=0.15)


@pytest.mark.parametrize("kind", [Surrogate, Reinforce])
def test_resumed_is_undisturbed_bit_for_bit(kind: type) -> None:
    data = decisions(20)
    whole, half = bound(kind()), bound(kind())
    feed(whole, data)
    feed(half, data[:11])
    file = io.BytesIO()
    torch.save({"policy": half.policy.state_dict(), "learner": half.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = bound(kind(), seed=7)
    resumed.policy.load_state_dict(saved["policy"])
    resumed.load_state_dict(saved["learner"])
    feed(resumed, data[11:])
    assert torch.equal(parameters(whole), parameters(resumed))


def test_a_zero_for_an_unknown_gain_is_no_fourth_gain() -> None:
    learner = bound(Surrogate())
    for gain in (0.1, math.nan, math.nan, math.nan, 0.2, 0.3):
        assert learner.learn([], Window([0.0] * FEATURES, 0.5, gain), [0.0] * FEATURES) == {}
    assert learner.learn([], Window([0.0] * FEATURES, 0.5, 0.4), [0.0] * FEATURES)


def test_the_shortest_memory_still_learns() -> None:
    learner = bound(Surrogate(memory=1))
    feed(learner, decisions(10))
    assert learner.learn([], None, [0.0] * FEATURES)


def test_old_windows_are_let_go() -> None:
    learner = bound(Surrogate(memory=5, steps=0))
    feed(learner, decisions(40))
    assert [w.gain for w in learner.windows] == [m.reward for m in decisions(40)[-15:]]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Surrogate, "memory", 0.5),
        (Surrogate, "memory", math.inf),
        (Surrogate, "optimism", -1),
        (Surrogate, "entropy", math.nan),
        (Surrogate, "steps", -1),
        (Surrogate, "lr", 11),
        (Reinforce, "lr", -0.1),
        (Reinforce, "entropy", -1),
        (Reinforce, "decay", 1.5),
    ],
)
def test_bad_numbers_are_refused_by_name(kind: type, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"exposure\.strategy\.init_args\.learner\.init_args\.{name} must be"):
        kind(**{name: value})
