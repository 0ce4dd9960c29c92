"""``python -m train.prepare`` where msconv_jax is installed."""

from msconv_jax.train import start

if __name__ == "__main__":
    start("train.prepare")
