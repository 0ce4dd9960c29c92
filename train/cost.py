"""Estimates what a run costs: `studies.cost`, whose ``--help`` describes it."""

from studies.cost import main
from train.errors import run_program

if __name__ == "__main__":
    run_program(main)
