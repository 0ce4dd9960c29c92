"""Runs python -m train in a process in which importing TensorFlow fails."""

import importlib.abc
import importlib.machinery
import runpy
import sys


class Barrier(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds TensorFlow, so that libraries that look for it see it, and fails to load it."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == "tensorflow":
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def exec_module(self, module):
        raise ImportError("TensorFlow must not be imported here")


if __name__ == "__main__":
    sys.meta_path.insert(0, Barrier())
    runpy.run_module("train", run_name="__main__", alter_sys=True)
