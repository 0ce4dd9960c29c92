"""The settings of a run: their schema, and their reading from files, the command line and the folder of a run."""

from train.config.checking import flatten, merge_changes, update_config, validate_config
from train.config.command_line import parse_command_line
from train.config.schema import Config, Settings, Split
from train.config.stored import (
    check_workdir,
    extends_run,
    read_config,
    sync_folder,
    write_bytes,
    write_config,
    write_text,
)

__all__ = ["Config", "Settings", "Split", "check_workdir", "extends_run", "flatten", "merge_changes"]
__all__ += ["parse_command_line", "read_config", "sync_folder", "update_config", "validate_config"]
__all__ += ["write_bytes", "write_config", "write_text"]
