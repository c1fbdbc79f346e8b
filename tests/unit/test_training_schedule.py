"""Learning rates and the length of a training, as functions of numbers."""

import pytest

from rectrain.api.tables import state_bytes_per_row
from rectrain.api.training import EmbeddingOptimizerType, Schedule, Training
from rectrain_jobs.training.optimizers import learning_rate_factor
from rectrain_jobs.training.trainer import total_steps


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ({}, 0, 1.0),
        ({}, 99, 1.0),
        ({"warmupSteps": 4}, 0, 0.25),
        ({"warmupSteps": 4}, 3, 1.0),
        ({"warmupSteps": 4}, 50, 1.0),
        ({"decay": "Linear"}, 0, 1.0),
        ({"decay": "Linear"}, 50, 0.5),
        ({"decay": "Linear"}, 100, 0.0),
        ({"decay": "Linear"}, 150, 0.0),
        ({"decay": "Linear", "finalFraction": 0.2}, 50, 0.6),
        ({"decay": "Linear", "finalFraction": 0.2}, 100, 0.2),
        ({"decay": "Linear", "warmupSteps": 20}, 19, 1.0),
        ({"decay": "Linear", "warmupSteps": 20}, 60, 0.5),
        ({"decay": "Cosine"}, 50, 0.5),
        ({"decay": "Cosine"}, 25, 0.5 + 0.5**1.5),
        ({"decay": "Cosine", "finalFraction": 0.1}, 100, 0.1),
        ({"decay": "Linear", "warmupSteps": 200}, 150, 151 / 200),
    ],
)
def test_learning_rate_factor(schedule, step, factor):
    assert learning_rate_factor(Schedule.model_validate(schedule), step, 100) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("length", "extra", "steps"),
    [
        ({}, 0, 7),
        ({"epochs": 3}, 0, 21),
        ({"maxSteps": 50}, 0, 50),
        ({"maxSteps": 50, "epochs": 3}, 0, 21),
        ({"maxSteps": 20, "epochs": 3}, 0, 20),
        ({"epochs": 3}, -4, 17),
        ({"epochs": 3, "maxSteps": 24}, 5, 24),
    ],
)
def test_total_steps(length, extra, steps):
    assert total_steps(Training.model_validate(length), 7, extra) == steps


@pytest.mark.parametrize(
    ("kind", "num_bytes"),
    [("SGD", 0), ("Adagrad", 256), ("RowWiseAdagrad", 4), ("Adam", 512), ("PartialRowWiseAdam", 260)],
)
def test_state_bytes_of_a_row(kind, num_bytes):
    assert state_bytes_per_row(EmbeddingOptimizerType(kind), 64) == num_bytes
