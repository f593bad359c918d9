"""Schedule, solvers and noise against diffusers' schedulers."""

from itertools import pairwise

import diffusers
import pytest
import torch

from ezigen.config import ConfigurationError
from ezigen.diffusion import CLEAN, NoiseSchedule, NoiseSource, ddim_step, ddpm_step, dpmpp_2m_step

SD21_BASE = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SHAPE = (2, 4, 8, 8)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace"]


def config(**changes):
    return {**SD21_BASE, **changes}


def network(x, t):
    """Some smooth function that is anything but a denoiser."""
    return torch.tanh(x * 0.7 + t.reshape(-1, 1, 1, 1) / 1000)


def vector(t):
    return torch.tensor([int(t)] * SHAPE[0])


def test_published_numbers():
    schedule = NoiseSchedule.from_config(SD21_BASE)
    assert schedule.alphas_cumprod[1].item() == pytest.approx(0.998296, abs=5e-7)
    assert (1 - schedule.alphas_cumprod[1]).sqrt().item() == pytest.approx(0.0413, abs=5e-5)
    timesteps = schedule.timesteps(50)
    assert timesteps[:3] == [981, 961, 941]
    assert timesteps[-2:] == [21, 1]
    assert timesteps[30] == 381  # split ratio 0.4: 20 of 50 steps are left
    assert len(timesteps) == 50


@pytest.mark.parametrize("changes", [{}, {"beta_schedule": "linear"}, {"trained_betas": [0.001, 0.01, 0.1, 0.2]}])
def test_alphas_equal_diffusers(changes):
    theirs = diffusers.DDPMScheduler.from_config(config(**changes))
    assert torch.equal(NoiseSchedule.from_config(config(**changes)).alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler, diffusers.DDPMScheduler])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 7, 25, 30, 50, 999, 1000])
def test_timesteps_equal_diffusers(scheduler, spacing, num_steps):
    settings = config(timestep_spacing=spacing, steps_offset=0 if num_steps > 998 else 1)
    theirs = scheduler.from_config(settings)
    theirs.set_timesteps(num_steps)
    assert NoiseSchedule.from_config(settings).timesteps(num_steps) == theirs.timesteps.tolist()


@pytest.mark.parametrize("bad", [{"beta_schedule": "cosine"}, {"prediction_type": "flow"}, {"timestep_spacing": "x"}])
def test_unknown_settings_are_refused_by_name(bad):
    (name,) = bad
    with pytest.raises(ConfigurationError, match=name):
        NoiseSchedule.from_config(config(**bad))


def test_impossible_numbers_of_steps_are_refused():
    schedule = NoiseSchedule.from_config(SD21_BASE)
    for num_steps in (0, 1000, 1001):
        with pytest.raises(ConfigurationError, match="num_steps"):
            schedule.timesteps(num_steps)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_conversions_agree_with_the_definition(prediction_type):
    schedule = NoiseSchedule.from_config(config(prediction_type=prediction_type))
    x0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([1, 381, 999])
    noisy = schedule.add_noise(x0, noise, t)
    theirs = diffusers.DDPMScheduler.from_config(config())
    assert torch.allclose(noisy, theirs.add_noise(x0, noise, t), atol=1e-6)
    assert torch.allclose(schedule.velocity(x0, noise, t), theirs.get_velocity(x0, noise, t), atol=1e-6)
    output = schedule.target(x0, noise, t)
    assert torch.allclose(schedule.to_x0(output, noisy, t), x0, atol=1e-4)
    assert torch.allclose(schedule.to_eps(output, noisy, t), noise, atol=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ddim_equals_diffusers_at_every_step(prediction_type, to_one, spacing):
    settings = config(prediction_type=prediction_type, set_alpha_to_one=to_one, timestep_spacing=spacing)
    theirs = diffusers.DDIMScheduler.from_config(settings)
    schedule = NoiseSchedule.from_config(settings)
    theirs.set_timesteps(25)
    x = torch.randn(SHAPE)
    for t in theirs.timesteps:
        output = network(x, vector(t))
        next_t = vector(t - 1000 // 25)  # the scheduler's own rule; for leading spacing it is the next timestep
        ours = ddim_step(schedule, output, x, vector(t), next_t)
        x = theirs.step(output, t, x, eta=0.0).prev_sample
        assert torch.allclose(ours, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ddpm_equals_diffusers_at_every_step(prediction_type):
    settings = config(prediction_type=prediction_type, timestep_spacing="leading", variance_type="fixed_small")
    theirs = diffusers.DDPMScheduler.from_config(settings)
    schedule = NoiseSchedule.from_config(settings)
    theirs.set_timesteps(25)
    timesteps = [*theirs.timesteps.tolist(), CLEAN]
    x = torch.randn(SHAPE)
    for index, t in enumerate(theirs.timesteps):
        output = network(x, vector(t))
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(index))
        ours = ddpm_step(schedule, output, x, vector(t), vector(timesteps[index + 1]), noise)
        x = theirs.step(output, t, x, generator=torch.Generator().manual_seed(index)).prev_sample
        assert torch.allclose(ours, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_steps", [10, 25])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_dpmpp_2m_equals_diffusers_at_every_step(prediction_type, num_steps):
    settings = config(prediction_type=prediction_type, algorithm_type="dpmsolver++", solver_order=2)
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(settings)
    schedule = NoiseSchedule.from_config(settings)
    timesteps = schedule.timesteps(num_steps)
    theirs.set_timesteps(timesteps=timesteps)
    x, last_x0, last_t = torch.randn(SHAPE), None, CLEAN
    for t, next_t in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        output = network(x, vector(t))
        x0 = schedule.to_x0(output, x, vector(t))
        ours = dpmpp_2m_step(schedule, x0, x, vector(t), vector(next_t), last_x0, vector(last_t))
        x = theirs.step(output, torch.tensor(t), x).prev_sample
        assert torch.allclose(ours, x, rtol=1e-4, atol=1e-5)
        last_x0, last_t = x0, t


@pytest.mark.parametrize("num_steps", [10, 25])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_step_upwards_equals_the_inverse_solver_of_diffusers(prediction_type, num_steps):
    settings = config(prediction_type=prediction_type, algorithm_type="dpmsolver++", solver_order=2)
    theirs = diffusers.DPMSolverMultistepInverseScheduler.from_config(settings, lower_order_final=False)
    schedule = NoiseSchedule.from_config(settings)
    theirs.set_timesteps(num_steps)
    timesteps = theirs.timesteps.tolist()
    x, last_x0, last_t = torch.randn(SHAPE), None, CLEAN
    for t, next_t in pairwise(timesteps):
        assert next_t > t
        output = network(x, vector(t))
        x0 = schedule.to_x0(output, x, vector(t))
        ours = dpmpp_2m_step(schedule, x0, x, vector(t), vector(next_t), last_x0, vector(last_t))
        x = theirs.step(output, torch.tensor(t), x).prev_sample
        assert torch.allclose(ours, x, rtol=1e-4, atol=1e-5)
        last_x0, last_t = x0, t


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("num_steps", [2, 5, 50])
def test_inversion_and_denoising_with_an_oracle_end_where_they_began(num_steps, second_order):
    """The oracle knows the image. First or second order, few steps or many: only fp32 rounding is left."""
    schedule = NoiseSchedule.from_config(SD21_BASE)
    source = torch.randn(SHAPE)
    up = schedule.timesteps(num_steps)[::-1]
    x = travel(schedule, source, source, up, second_order)
    assert (x - source).abs().mean() > 0.1  # it went somewhere
    back = travel(schedule, x, source, [*up[::-1], CLEAN], second_order)
    assert torch.allclose(back, source, atol=1e-5)
    assert torch.allclose(travel(schedule, x, source, up[::-1], second_order), source, atol=2e-4)


def travel(schedule, x, x0, timesteps, second_order):
    last_t = CLEAN
    for t, next_t in pairwise(timesteps):
        x = dpmpp_2m_step(schedule, x0, x, vector(t), vector(next_t), x0 if second_order else None, vector(last_t))
        last_t = t
    return x


def test_samples_at_different_timesteps_share_a_step():
    schedule = NoiseSchedule.from_config(SD21_BASE)
    x, output, noise, last_x0 = (torch.randn(4, 4, 8, 8) for _ in range(4))
    t, next_t, last_t = (
        torch.tensor([981, 381, 21, 1]),
        torch.tensor([961, 361, 1, -1]),
        torch.tensor([-1, 401, 41, 21]),
    )
    x0 = schedule.to_x0(output, x, t)
    together = (
        ddim_step(schedule, output, x, t, next_t),
        ddpm_step(schedule, output, x, t, next_t, noise),
        dpmpp_2m_step(schedule, x0, x, t, next_t, last_x0, last_t),
    )
    for row in range(4):
        one = slice(row, row + 1)
        last = None if last_t[row] < 0 else last_x0[one]
        alone = (
            ddim_step(schedule, output[one], x[one], t[one], next_t[one]),
            ddpm_step(schedule, output[one], x[one], t[one], next_t[one], noise[one]),
            dpmpp_2m_step(schedule, x0[one], x[one], t[one], next_t[one], last, last_t[one]),
        )
        for ours, single in zip(together, alone, strict=True):
            assert torch.equal(ours[one], single)
            assert torch.isfinite(single).all()


def test_noise_is_a_function_of_its_key():
    source = NoiseSource()
    one = source.noise(7, "renoise", 2, 0, (4, 8, 8))
    assert torch.equal(one, source.noise(7, "renoise", 2, 0, (4, 8, 8)))
    assert torch.equal(one, source.batch([3, 7, 5], "renoise", 2, 0, (4, 8, 8))[1])
    others = [
        (8, "renoise", 2, 0),
        (7, "initial", 2, 0),
        (7, "renoise", 3, 0),
        (7, "renoise", 2, 1),
        (72, "renoise", 0, 0),
    ]
    for key in others:
        assert abs(torch.corrcoef(torch.stack([one, source.noise(*key, (4, 8, 8))]).flatten(1))[0, 1]) < 0.2


def test_noise_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    NoiseSource().noise(1, "step", 0, 0, (4, 8, 8))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_noise_is_standard_normal():
    values = NoiseSource().noise(0, "initial", 0, 0, (200_000,))
    assert values.mean().item() == pytest.approx(0, abs=0.01)
    assert values.std().item() == pytest.approx(1, abs=0.01)


def test_noise_does_not_change_between_versions():
    expected = torch.tensor(PINNED)
    assert torch.allclose(NoiseSource().noise(1234, "initial", 0, 0, (4,)), expected, atol=1e-6)


PINNED = [-0.1425509, 0.3632549, 0.1361048, 0.314691]
