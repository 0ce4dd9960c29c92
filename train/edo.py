"""Searches the dilations of a network (EDO) and trains the result: `studies.edo`, whose ``--help`` describes it."""

from studies.edo import main
from train.errors import run_program

if __name__ == "__main__":
    run_program(main)
