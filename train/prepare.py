"""Prepares a data set of TensorFlow Datasets: `train.data.prepare`, whose ``--help`` describes it."""

from train.data.prepare import main
from train.errors import run_program

if __name__ == "__main__":
    run_program(main)
