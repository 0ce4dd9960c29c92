"""``python -m train.evaluate`` where msconv_jax is installed."""

from msconv_jax.train import start

if __name__ == "__main__":
    start("train.evaluate")
