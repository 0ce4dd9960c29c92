"""The settings of a run: their schema, and how they are read from files, the command line and the folder of a run."""

from train.config.checking import changed, checked, flatten, merged
from train.config.command_line import parse_command_line
from train.config.schema import Config, Settings, Split
from train.config.stored import (
    check_workdir,
    is_longer,
    read_config,
    sync_folder,
    write_bytes,
    write_config,
    write_text,
)

__all__ = ["Config", "Settings", "Split", "changed", "check_workdir", "checked", "flatten", "is_longer"]
__all__ += ["merged", "parse_command_line", "read_config", "sync_folder", "write_bytes", "write_config", "write_text"]
