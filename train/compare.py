"""Trains several networks with several seeds and compares them: `studies.compare`, whose ``--help`` describes it."""

from studies.compare import main
from train.errors import run_program

if __name__ == "__main__":
    run_program(main)
