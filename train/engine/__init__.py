"""What every run is made of, whatever its task: the loop, its steps, checkpoints, devices and logs.

Start at `loop`: it tells the whole story in order and names the file behind each chapter. Nothing here imports a task.
"""
