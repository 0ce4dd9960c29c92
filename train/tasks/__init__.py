"""The tasks by name: what a sample means, what is lost and what is measured. One task, one file."""

from train.config import Config
from train.task import Task
from train.tasks.classification import Classification
from train.tasks.segmentation import Segmentation

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}


def task_kind(config: Config) -> type[Task]:
    """Gives the task that a config names."""
    return TASKS[config.task.name]
