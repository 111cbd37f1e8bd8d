"""Every transition in closed form and float64: the invariants of the kernels, and diffusers where it has the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from burnish.formulas import gaussian
from burnish.models.flow_times import DPM, EULER, UNIPC, FlowTimes
from burnish.models.variance_preserving import Timesteps
from burnish.transitions.consistency import Consistency
from burnish.transitions.cps import CPS
from burnish.transitions.ddim import DDIM
from burnish.transitions.dpmpp import DPMpp
from burnish.transitions.flow_sde import FlowSDE

EXACT = [
    DDIM(),
    DDIM(eta=0.5),
    DDIM(law="pcpo"),
    CPS(),
    CPS(eta=1.0),
    DPMpp(),
    Consistency(),
]  # marginals are those of the flow
SDE = [FlowSDE(), FlowSDE(a=0.3, schedule="constant"), FlowSDE(a=0.9, schedule="linear", floor=0.2)]
ALL = [*EXACT, *SDE]
TIMES = [(0.95, 0.9), (0.8, 0.5), (0.5, 0.2), (0.3, 0.29), (0.2, 0.05)]

every = pytest.mark.parametrize("transition", ALL, ids=str)
at_times = pytest.mark.parametrize("t, s", TIMES)


def full(value: float, n: int = 3) -> torch.Tensor:
    return torch.full((n,), value, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, velocity) of three rows."""
    return normal(3, 2, 4, 4, seed=seed), normal(3, 2, 4, 4, seed=seed + 1)


def close(found, expected, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=found.dtype).expand_as(found), atol=tolerance, rtol=0
    )


def point_mass(transition, t: float, s: float) -> tuple[float, float, float]:
    """Mean = A x + B c where all data lie at c and so v = (x - c) / t: (A, B, std)."""

    def mean(x: float, c: float) -> tuple[float, float]:
        x, c = full(x, 1).view(1, 1), full(c, 1).view(1, 1)
        found, std = transition.move(x, (x - c) / t, full(t, 1), full(s, 1))
        return found.item(), std.item()

    (a, std), (b, _) = mean(1.0, 0.0), mean(0.0, 1.0)
    assert mean(2.0, 3.0)[0] == pytest.approx(2 * a + 3 * b, abs=1e-12)
    return a, b, std


# --- no noise is the ODE ----------------------------------------------------------------------------------------------

SILENT = [DDIM(eta=0.0), CPS(eta=0.0), *(FlowSDE(a=0.0, schedule=s) for s in ("sqrt", "constant", "linear"))]


@at_times
@pytest.mark.parametrize("transition", SILENT, ids=str)
def test_without_noise_it_is_an_euler_step(transition, t, s):
    x, v = state()
    mean, std = transition.move(x, v, full(t), full(s))
    close(mean, x + (s - t) * v)
    close(std, 0.0)


# --- marginals --------------------------------------------------------------------------------------------------------


@at_times
@pytest.mark.parametrize("transition", EXACT, ids=str)
def test_noise_after_the_step_is_exactly_that_of_its_time(transition, t, s):
    a, b, std = point_mass(transition, t, s)
    assert a * (1 - t) + b == pytest.approx(1 - s, abs=1e-12)
    assert a**2 * t**2 + std**2 == pytest.approx(s**2, abs=1e-12)
    assert std > 0


def sigma(transition: FlowSDE, t: float) -> float:
    """The noise of the equation at t, written out anew."""
    match transition.schedule:
        case "sqrt":
            return transition.a * math.sqrt(t / (1 - t))
        case "constant":
            return transition.a
        case "linear":
            return transition.floor * (1 - t) + transition.a * t


@at_times
@pytest.mark.parametrize("transition", SDE, ids=str)
def test_euler_steps_of_the_sde_are_too_noisy_by_the_stated_amount(transition, t, s):
    a, b, std = point_mass(transition, t, s)
    h, level = t - s, sigma(transition, t)
    assert a * (1 - t) + b == pytest.approx(1 - s, abs=1e-12)
    assert std == pytest.approx(level * math.sqrt(h), abs=1e-12)
    inflated = s**2 + level**2 * h**2 / t + level**4 * h**2 / (4 * t**2)
    assert a**2 * t**2 + std**2 == pytest.approx(inflated, abs=1e-12)


@pytest.mark.parametrize("transition", SDE, ids=str)
def test_the_surplus_falls_by_four_when_the_step_halves(transition):
    t, surplus = 0.6, []
    for h in (0.2, 0.1, 0.05):
        a, _, std = point_mass(transition, t, t - h)
        surplus.append(a**2 * t**2 + std**2 - (t - h) ** 2)
    assert surplus[0] / surplus[1] == pytest.approx(4, rel=1e-9)
    assert surplus[1] / surplus[2] == pytest.approx(4, rel=1e-9)


@at_times
def test_ddim_with_all_noise_is_the_posterior_of_ddpm(t, s):
    """DDPM eq. 7 in variance-preserving states x / sqrt((1 - t)^2 + t^2), with alphas of their own."""
    x, v = state()
    mean, std = DDIM(eta=1.0).move(x, v, full(t), full(s))
    bar, bar_after = ((1 - u) ** 2 / ((1 - u) ** 2 + u**2) for u in (t, s))
    length, length_after = (math.sqrt((1 - u) ** 2 + u**2) for u in (t, s))
    alpha = bar / bar_after
    clean = x - t * v
    of_clean = math.sqrt(bar_after) * (1 - alpha) / (1 - bar)
    of_state = math.sqrt(alpha) * (1 - bar_after) / (1 - bar)
    close(mean / length_after, of_clean * clean + of_state * x / length)
    close(std / length_after, math.sqrt((1 - bar_after) / (1 - bar) * (1 - alpha)))


def test_what_the_deviation_of_pcpo_makes_constant_and_what_not():
    """Over the 49 steps of Stable Diffusion 1.5's schedule: (c1 + c2) / sigma is 4.5, (c1 - c2) / sigma is not."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    abar = (1 - beta).cumprod(0)[torch.arange(981, 0, -20)]
    noise, signal = (1 - abar).sqrt(), abar.sqrt()
    time = noise / (noise + signal)  # of the flow with the same ratio
    t, s = time[:-1], time[1:]
    x = normal(len(t), 3)
    _, std = DDIM(law="pcpo").move(x, normal(len(t), 3, seed=1), t, s)
    sigma = std / torch.sqrt((1 - s).square() + s.square())
    c1 = noise[:-1] * signal[1:] / signal[:-1]
    c2 = (1 - abar[1:] - sigma.square()).clamp(min=0).sqrt()
    close((c1 + c2) / sigma, 4.5, 1e-6)
    weight = (c1 - c2) / sigma
    assert 0.3 < weight.min() < 0.5 and 3.0 < weight.max() < 4.0


@at_times
def test_dpmpp_of_first_order_is_ddim_with_all_noise(t, s):
    x, v = state()
    found, expected = (step.move(x, v, full(t), full(s)) for step in (DPMpp(), DDIM(eta=1.0)))
    close(found[0], expected[0])
    close(found[1], expected[1])


def widths(transition, times: torch.Tensor, width: float) -> list[float]:
    """Deviation of the state after every step over that of the flow; data are N(0, width^2), the last step is the ODE.

    Exact: every step is linear. times (steps + 1)
    """
    t, s = times[:-1], times[1:]
    v = (t - (1 - t) * width**2) / ((1 - t) ** 2 * width**2 + t**2)  # of x = 1
    factor, std = transition.move(torch.ones(len(t), 1, dtype=torch.float64), v[:, None], t, s)
    factor[-1], std[-1] = 1 + (s[-1] - t[-1]) * v[-1], 0
    flow = (s**2 + ((1 - s) * width) ** 2).tolist()
    variance, found = float(times[0] ** 2 + ((1 - times[0]) * width) ** 2), []
    for by, noise, expected in zip(factor.flatten().tolist(), std.tolist(), flow, strict=True):
        variance = by**2 * variance + noise**2
        found.append(math.sqrt(variance / expected))
    return found


def deviation(transition, steps: int, width: float = 0.5) -> float:
    """Of pictures, where data are N(0, width^2)."""
    return width * widths(transition, torch.linspace(1, 0, steps + 1, dtype=torch.float64), width)[-1]


FIRST_ORDER = [
    DDIM(),
    DDIM(eta=0.5),
    DDIM(eta=0.0),
    FlowSDE(a=0.3, schedule="constant"),
    FlowSDE(a=0.9, schedule="linear"),
    FlowSDE(a=0.9, schedule="linear", floor=0.2),
    FlowSDE(a=2.0),
]


@pytest.mark.parametrize("transition", FIRST_ORDER, ids=str)
def test_pictures_become_as_wide_as_the_data_with_more_steps(transition):
    """Error of first order in the step."""
    errors = [abs(deviation(transition, steps) - 0.5) for steps in (50, 100, 200)]
    assert 1.7 < errors[0] / errors[1] < 2.3 and 1.7 < errors[1] / errors[2] < 2.3, errors


@pytest.mark.parametrize("a", [0.5, 0.7])
def test_pictures_of_the_root_schedule_become_as_wide_as_the_data_too_but_slowly(a):
    """Error b steps^-(a^2) + c / steps: near t = 1 steps are as long as what lies before them, however many there are.

    Surplus that they bring in is forgotten as (1 - t)^(a^2). c is taken out with 4 times and 16 times the steps.
    """
    errors = [deviation(FlowSDE(a), 2000 * times, 1.0) - 1 for times in (1, 4, 16)]
    assert 0 < errors[2] < errors[1] < errors[0] < 0.02, errors
    order = math.log((4 * errors[1] - errors[0]) / (4 * errors[2] - errors[1]), 4)
    assert order == pytest.approx(a**2, rel=0.05)


def test_cps_draws_pictures_that_are_too_alike_however_many_steps_it_takes():
    """It keeps the noise of a point mass, and not the width of data that have one: eta is a share of every step."""
    errors = [0.5 - deviation(CPS(eta=0.7), steps) for steps in (50, 100, 200, 400)]
    assert all(error > 0.07 for error in errors), errors


@at_times
def test_schedules_of_the_sde_agree_where_their_noise_does(t, s):
    x, v = state()
    level = 0.7 * math.sqrt(t / (1 - t))
    expected = FlowSDE(a=0.7).move(x, v, full(t), full(s))
    flat = FlowSDE(a=level, schedule="constant").move(x, v, full(t), full(s))
    slanted = FlowSDE(a=level, schedule="linear", floor=level).move(x, v, full(t), full(s))
    for found in (flat, slanted):
        close(found[0], expected[0])
        close(found[1], expected[1])


@at_times
def test_the_sde_in_the_form_of_dancegrpo(t, s):
    """Drift v + eta^2 (x - (1 - t) clean) / (2 t^2)."""
    x, v = state()
    mean, _ = FlowSDE(a=0.3, schedule="constant").move(x, v, full(t), full(s))
    drift = v + 0.5 * 0.3**2 * (x - (1 - t) * (x - t * v)) / t**2
    close(mean, x + (s - t) * drift)


# --- likelihood -------------------------------------------------------------------------------------------------------


@at_times
@every
def test_logp_of_a_drawn_state(transition, t, s):
    if isinstance(transition, CPS):
        transition = CPS(transition.eta, density=True)
    x, v = state()
    mean, std = transition.move(x, v, full(t), full(s))
    z = normal(*x.shape, seed=5)
    found = transition.logp(mean + std.view(-1, 1, 1, 1) * z, mean, std)
    close(found, -z.square().flatten(1).mean(1) / 2 - std.log() - 0.5 * math.log(2 * math.pi))


@at_times
def test_cps_as_released_scores_the_squared_distance_alone(t, s):
    x, v = state()
    mean, std = CPS(0.8).move(x, v, full(t), full(s))
    z = normal(*x.shape, seed=5)
    found = CPS(0.8).logp(mean + std.view(-1, 1, 1, 1) * z, mean, std)
    close(found, -std.square() * z.square().flatten(1).mean(1))
    close(std, s * math.sin(0.8 * math.pi / 2))


@at_times
@pytest.mark.parametrize("transition", SDE, ids=str)
def test_kl_of_one_step_between_two_velocities(transition, t, s):
    x, v = state()
    other = v + normal(*v.shape, seed=9)
    (mean, std), (mean_other, _) = (transition.move(x, u, full(t), full(s)) for u in (v, other))
    level, h = sigma(transition, t), t - s
    weight = h / 2 * (1 / level + level * (1 - t) / (2 * t)) ** 2
    close(gaussian.kl(mean, mean_other, std), weight * (v - other).square().flatten(1).mean(1), 1e-11)


def test_kl_is_the_mean_log_ratio():
    """Against a sum over drawn states, as the formula for the Gaussian is used by every other test here."""
    mean, other, std = normal(1, 4), normal(1, 4, seed=1), full(0.7, 1)
    after = mean + 0.7 * normal(200_000, 4, seed=2)
    here, there = (gaussian.logp(after, centre.expand_as(after), full(0.7, 200_000)) for centre in (mean, other))
    ratio = here - there
    assert gaussian.kl(mean, other, std).item() == pytest.approx(ratio.mean().item(), rel=0.01)


def test_entropy_is_the_mean_surprise():
    after = 0.7 * normal(200_000, 1, seed=2)
    surprise = -gaussian.logp(after, torch.zeros_like(after), full(0.7, 200_000))
    assert gaussian.entropy(full(0.7, 1)).item() == pytest.approx(surprise.mean().item(), abs=0.01)


# --- ends, rows, types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [0.99, 0.5, 0.1])
@every
def test_the_first_step_starts_from_pure_noise(transition, s):
    x, v = state()
    mean, std = transition.move(x, v, full(1.0), full(s))
    assert mean.isfinite().all() and (std > 0).all() and std.isfinite().all()
    assert transition.logp(mean, mean, std).isfinite().all()


@pytest.mark.parametrize("t", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("transition", EXACT, ids=str)
def test_the_last_step_ends_at_the_clean_state(transition, t):
    x, v = state()
    mean, std = transition.move(x, v, full(t), full(0.0))
    close(mean, x - t * v)
    close(std, 0.0)


def test_the_sde_at_pure_noise_takes_the_denominator_of_the_steps_end():
    x, v = state()
    _, std = FlowSDE(a=0.7).move(x, v, full(1.0), full(0.9))
    close(std, 0.7 * math.sqrt(1 / (1 - 0.9)) * math.sqrt(0.1))


# Times of the policies: the clock that each reads its pipeline's scheduler with, and how that is released.


def flow(name: str, even: bool = False, **settings) -> FlowTimes:
    scheduler = getattr(pytest.importorskip("diffusers"), name)(**settings)
    return FlowTimes(scheduler, Path("scheduler"), None, tokens=4096, even=even)


def dpm(shift: float) -> FlowTimes:
    return flow(DPM, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def unipc(shift: float) -> FlowTimes:
    return flow(UNIPC, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def sized(**settings) -> FlowTimes:
    return flow(EULER, True, use_dynamic_shifting=True, base_shift=0.5, **settings)


def trained(name: str, **settings) -> Timesteps:
    beta = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = getattr(pytest.importorskip("diffusers"), name)(**beta, **settings)
    return Timesteps(scheduler, Path("scheduler"), torch.device("cpu"))


CLOCKS = {
    "sana": lambda: dpm(3.0),
    "sd3": lambda: flow(EULER, shift=3.0),
    "flux": lambda: sized(max_shift=1.15),
    "schnell": lambda: flow(EULER, True, shift=1.0),
    "qwen_image": lambda: sized(max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02),
    "wan": lambda: unipc(5.0),
    "sd": lambda: trained("DDIMScheduler", steps_offset=1),
    "sdxl": lambda: trained("EulerDiscreteScheduler", steps_offset=1, timestep_spacing="leading"),
    "lcm": lambda: trained("LCMScheduler"),
}


@pytest.mark.parametrize(("steps", "within"), [(20, 0.09), (50, 0.06)])
@pytest.mark.parametrize("clock", CLOCKS)
def test_states_of_flow_grpo_are_as_wide_as_the_flows_at_every_policys_times(clock, steps, within):
    """But for the error of Euler steps, in the middle and of the last one."""
    found = widths(FlowSDE(0.7), CLOCKS[clock]().times(steps), width=1.0)
    assert found == pytest.approx([1.0] * steps, abs=within)


def shifted(steps: int, shift: float, start: float = 1.0) -> torch.Tensor:
    even = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
    return shift * even / (1 + (shift - 1) * even)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 17.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 50, 100, 190])
def test_a_schedule_that_begins_a_little_below_one_begins_as_one_that_begins_there(steps, shift):
    """At 0.999 shifted, as DPM-Solver's do: the noise is that of 1, of which a step to the same end would have more."""
    t, s = shifted(steps, shift, 0.999)[:2].tolist()
    x, v = state()
    _, found = FlowSDE(0.7).move(x, v, full(t), full(s))
    _, whole = FlowSDE(0.7).move(x, v, full(1.0), full(s))
    close(found, 0.7 * math.sqrt(t / (1 - s) * (t - s)))
    assert (found < whole).all() and (found > 0.9 * whole).all()


@pytest.mark.parametrize("make", [
    lambda steps, shift: shifted(steps, shift), lambda steps, shift: shifted(steps, shift, 0.999),
    lambda steps, shift: flow(EULER, shift=shift).times(steps), lambda steps, shift: dpm(shift).times(steps),
    lambda steps, shift: unipc(shift).times(steps),
    lambda steps, shift: flow(EULER, shift=shift, use_karras_sigmas=True).times(steps),
    lambda steps, shift: flow(EULER, shift=shift, use_beta_sigmas=True).times(steps),
], ids=["even", "even from 0.999", "euler", "dpm", "unipc", "karras", "beta"])  # fmt: skip
def test_elsewhere_the_noise_is_that_of_the_time(make):
    """No later step is taken for the first one, and 1 itself is taken as released, to the last bit."""
    for shift in (1.0, 3.0, 5.0, 12.0, 17.0):
        for steps in (2, 3, 4, 10, 25, 50, 100):
            times = make(steps, shift)
            t, s = times[:-1], times[1:]
            old = 0.7 * (t / (1 - torch.where(t < 1, t, s))).sqrt() * (t - s).sqrt()
            _, std = FlowSDE(0.7).move(t[:, None], t[:, None], t, s)
            known = torch.arange(steps) >= int(times[0] < 1)
            assert torch.equal(std[known], old[known]), (shift, steps)


@every
def test_times_may_differ_from_row_to_row(transition):
    x, v = state()
    t, s = torch.tensor([1.0, 0.8, 0.3], dtype=torch.float64), torch.tensor([0.9, 0.2, 0.1], dtype=torch.float64)
    mean, std = transition.move(x, v, t, s)
    for i in range(3):
        alone, its = transition.move(x[i : i + 1], v[i : i + 1], t[i : i + 1], s[i : i + 1])
        assert torch.equal(alone[0], mean[i]) and torch.equal(its[0], std[i])


@every
def test_states_keep_their_precision(transition):
    x, v = (u.float() for u in state())
    mean, std = transition.move(x, v, full(0.5), full(0.4))
    assert mean.dtype == std.dtype == torch.float32
    exact, deviation = transition.move(x.double(), v.double(), full(0.5), full(0.4))
    close(mean.double(), exact, 1e-6)
    close(std.double(), deviation, 1e-6)


@pytest.mark.parametrize("make, sentence", [
    (lambda: DDIM(eta=1.1), "eta must be from 0"),
    (lambda: DDIM(eta=-0.1), "eta must be from 0"),
    (lambda: CPS(eta=1.1), "eta must be from 0"),
    (lambda: CPS(eta=-0.1), "eta must be from 0"),
    (lambda: FlowSDE(a=-0.1), "a and floor must be 0 or more"),
    (lambda: FlowSDE(floor=-0.1), "a and floor must be 0 or more"),
])  # fmt: skip
def test_wrong_settings(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# --- against diffusers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_as_diffusers_has_it(eta):
    """Over all steps of a schedule of Stable Diffusion 1.5, the last included."""
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(20)
    x, eps = state()
    for step in scheduler.timesteps.tolist():
        z, after = normal(*x.shape, seed=step), step - 50
        bar = scheduler.alphas_cumprod[step]
        bar_after = scheduler.alphas_cumprod[after] if after >= 0 else scheduler.final_alpha_cumprod
        expected = scheduler.step(eps, step, x, eta=eta, variance_noise=z if eta else None).prev_sample
        t, s = (float((1 - b).sqrt() / (b.sqrt() + (1 - b).sqrt())) for b in (bar, bar_after))
        length, length_after = (math.sqrt((1 - u) ** 2 + u**2) for u in (t, s))
        clean = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        mean, std = DDIM(eta=eta).move(x * length, eps - clean, full(t), full(s))
        close((mean + std.view(-1, 1, 1, 1) * z) / length_after, expected, 1e-10)
        x = expected


@pytest.mark.parametrize("transition", SILENT, ids=str)
def test_the_ode_as_diffusers_has_it(transition):
    scheduler = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    x, v = (u.float() for u in state())
    for i, step in enumerate(scheduler.timesteps):
        t, s = scheduler.sigmas[i], scheduler.sigmas[i + 1]
        mean, _ = transition.move(x, v, t.expand(3), s.expand(3))
        x = scheduler.step(v, step, x).prev_sample
        close(mean, x, 2e-6)


def test_consistency_steps_as_diffusers_has_them():
    scheduler = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(4)
    x, v = (u.float() for u in state())
    for i, step in enumerate(scheduler.timesteps):
        t, s = scheduler.sigmas[i], scheduler.sigmas[i + 1]
        mean, std = Consistency().move(x, v, t.expand(3), s.expand(3))
        torch.manual_seed(i)
        x = scheduler.step(v, step, x).prev_sample
        torch.manual_seed(i)
        close(mean + std.view(-1, 1, 1, 1) * torch.randn_like(x), x, 2e-6)
