"""The same command twice at once in one folder, as when a scheduler restarts what still runs."""

import json
import os
import subprocess
import sys

import pytest

from tests.train.helpers import ROOT


@pytest.mark.slow
def test_two_starts_in_one_folder_make_one_run(tmp_path):
    run = tmp_path / "run"
    settings = {
        "model.name": "resnet8",
        "model.conv": "",
        "model.conv_kwargs": "{}",
        "model.kwargs.width": 2,
        "epochs": 4,
        "batch_size": 240,
        "checkpoint_every": 1,
    }
    command = [sys.executable, "-W", "ignore", "-m", "train", "--config=configs/ps_resnet_digits.py"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    started = [
        subprocess.Popen(
            [*command, f"--workdir={run}"],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=900)[0] for process in started]
    assert not any("Traceback" in text for text in printed), printed
    assert 0 in [process.returncode for process in started], printed
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]
