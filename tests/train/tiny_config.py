from ml_collections import ConfigDict

from tests.train.helpers import TINY


def get_config():
    return ConfigDict(TINY)
