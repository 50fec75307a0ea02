import math

import numpy as np
import pytest

from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.replay.generator import calibration, generate
from jupyter_gpu_predict.replay.traces import Session, Trace
from jupyter_gpu_predict.replay.workload import draw, draw_duty, draw_memory_bytes

HOUR = 3600.0


def trace(sessions=3, bursts=30, grain_s=0.0):
    start = np.arange(bursts) * 8 * HOUR
    made = [
        Session(f"s{i}", start + i, np.full(bursts, HOUR), np.ones(bursts)) for i in range(sessions)
    ]
    return Trace("made", grain_s, tuple(made))


def test_one_seed_gives_one_workload_and_a_smaller_one_is_its_beginning():
    assert draw(trace(), 5, 1) == draw(trace(), 5, 1)
    assert draw(trace(), 3, 1).notebooks == draw(trace(), 5, 1).notebooks[:3]
    assert draw(trace(), 5, 1) != draw(trace(), 5, 2)


def test_each_session_is_drawn_before_any_is_drawn_again():
    names = [n.name for n in draw(trace(), 6, 4).notebooks]
    assert sorted(names[:3]) == sorted(names[3:]) == ["s0", "s1", "s2"]


def test_a_clip_keeps_thought_and_work_within_its_length():
    for notebook in draw(trace(), 6, 3).notebooks:
        assert 5 <= len(notebook.work_s) <= 7
        assert notebook.think_s[1:-1] == pytest.approx([7 * HOUR] * (len(notebook.work_s) - 2))
        assert sum(notebook.think_s) + sum(notebook.work_s) <= 48 * HOUR + 1e-6


def test_a_burst_that_goes_on_ends_with_the_clip_and_a_cap_cuts():
    long = Trace("long", 0.0, (Session("a", np.array([0.0]), np.array([1e6]), np.ones(1)),))
    (notebook,) = draw(long, 1, 0, active=1, clip_s=10 * HOUR).notebooks
    assert notebook.work_s == pytest.approx((10 * HOUR,))
    (notebook,) = draw(long, 1, 0, active=1, cap_s=60.0).notebooks
    assert notebook.work_s == (60.0,)


def test_thought_is_spread_within_the_grain_only():
    exact = draw(trace(), 4, 0).notebooks
    spread = draw(trace(grain_s=60.0), 4, 0).notebooks
    thoughts = [np.concatenate([n.think_s for n in notebooks]) for notebooks in (exact, spread)]
    more = thoughts[1] - thoughts[0]
    assert 0 <= more.min() < 15 < 45 < more.max() < 60
    assert draw(trace(grain_s=60.0), 4, 0, dither=False).notebooks == exact


def test_sessions_without_enough_bursts_are_not_drawn():
    with pytest.raises(BadInputError, match="31 bursts"):
        draw(trace(), 1, 0, active=31)
    for options in ({"clip_s": 0.0}, {"clip_s": math.nan}, {"cap_s": -1.0}):
        with pytest.raises(BadInputError, match="above 0"):
            draw(trace(), 1, 0, **options)
    with pytest.raises(BadInputError, match="above 0"):
        draw(trace(), 0, 0)


def test_memory_and_duty_follow_the_published_quantiles():
    rng = np.random.default_rng(0)
    memory = np.array([draw_memory_bytes(rng) for _ in range(4000)]) / 2**30
    duty = np.array([draw_duty(rng) for _ in range(4000)])
    assert np.percentile(memory, (50, 90)) == pytest.approx((2.3, 18.0), rel=0.15)
    assert np.percentile(duty, (50, 90)) == pytest.approx((0.085, 0.36), rel=0.15)
    assert duty.max() <= 1.0


def test_the_generator_comes_near_what_is_published():
    for target in calibration(200):
        assert target.generated == pytest.approx(target.published, rel=0.25), target.name


def test_the_generator_is_seeded_and_its_load_is_nested():
    assert generate(4, 1) == generate(4, 1)
    assert generate(2, 1).notebooks == generate(4, 1).notebooks[:2]
    assert all(n.work_s for n in generate(30, 0).notebooks)
    with pytest.raises(BadInputError, match="above 0"):
        generate(2, 0, clip_s=math.inf)
