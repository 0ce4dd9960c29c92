"""The task-independent parts of a run: the loop, its steps, checkpoints, devices and logs.

Start at `loop`. Nothing here imports a task.
"""
