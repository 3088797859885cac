import pytest

from live_training import LiveTraining
from otlp_receiver import eventually
from run_lines import spans


@pytest.fixture
def train(tmp_path):
    """Starts trainings that end with the test: `train(service, **variables)`."""
    started = []

    def start(service="training", **variables):
        started.append(LiveTraining(tmp_path / f"training{len(started)}", service, **variables))
        return started[-1]

    yield start
    for training in started:
        training.kill()


@pytest.fixture
def steps_arrive():
    """Waits until a gateway's file has some steps of a training."""

    def wait(gateway, training):
        try:
            eventually(lambda: gateway.files and len(spans(gateway.by_signal())) > 10, timeout_s=30)
        except AssertionError:
            raise AssertionError(f"{training.log}\n{gateway.log.read_text()[-4000:]}") from None

    return wait
