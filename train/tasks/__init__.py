"""The tasks by name. One file defines one task: its samples, network, loss and metrics."""

from train.config import Config
from train.task import Task
from train.tasks.classification import Classification
from train.tasks.segmentation import Segmentation

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}


def task_kind(config: Config) -> type[Task]:
    """Returns the task that a config names."""
    return TASKS[config.task.name]
