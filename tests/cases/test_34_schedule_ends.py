"""Learning rates at both ends of every schedule: never 0, and the peak where it belongs."""

import numpy as np

from train.config import validate_config
from train.engine.optim import learning_rate


def rates(per_epoch, epochs=4, **optimizer):
    values = {
        "data": {"source": "digits"},
        "model": {"name": "resnet8"},
        "optimizer": {"learning_rate": 0.4, **optimizer},
        "epochs": epochs,
        "batch_size": 1,
    }
    config = validate_config(values)
    rate = learning_rate(config.optimizer, config.epochs, per_epoch)
    return np.array([float(rate(step)) for step in range(epochs * per_epoch)])


def test_a_cosine_begins_at_the_peak_and_ends_above_0():
    found = rates(10)
    np.testing.assert_allclose(found[0], 0.4, rtol=1e-6)
    assert 0 < found[-1] < 0.01
    assert (np.diff(found) < 0).all()


def test_a_warm_up_rises_to_the_peak():
    found = rates(10, warmup_epochs=1.0)
    assert 0 < found[0] <= 0.04 + 1e-6
    assert (np.diff(found[:10]) > 0).all()
    np.testing.assert_allclose(found.max(), 0.4, rtol=1e-6)
    assert found[-1] > 0


def test_steps_fall_where_those_of_pytorch_fall():
    found = rates(10, schedule="steps", schedule_epochs=[1.0, 3.0])
    np.testing.assert_allclose(found, [0.4] * 10 + [0.04] * 20 + [0.004] * 10, rtol=1e-5)


def test_a_warm_up_may_last_part_of_a_step_or_the_whole_run():
    short = rates(3, schedule="steps", schedule_epochs=[1.5], warmup_epochs=0.1)
    assert np.isfinite(short).all()
    assert short[0] > 0
    np.testing.assert_allclose(rates(1, epochs=1, warmup_epochs=1.0), [0.4], rtol=1e-6)
    whole = rates(5, epochs=2, warmup_epochs=2.0)
    np.testing.assert_allclose(whole[-1], 0.4, rtol=1e-6)
    assert (whole > 0).all()


def test_a_constant_rate_stays():
    np.testing.assert_allclose(rates(3, schedule="constant"), 0.4, rtol=1e-6)
