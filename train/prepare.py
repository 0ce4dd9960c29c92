"""Prepares a data set of TensorFlow Datasets (tfds) for training: once, after which TensorFlow is not needed.

    python -m train.prepare --dataset=cifar100 [--data_dir=FOLDER]
    python -m train.prepare --dataset=imagenet2012 --manual_dir=FOLDER_OF_THE_ARCHIVES [--data_dir=FOLDER]

downloads the data set if its licence allows it, writes array_record files and reads every record again. A second call
checks the existing files. This needs TensorFlow: pip install 'msconv_jax[prepare]'.

    python -m train.prepare --dataset=scaled_digits [--data_dir=FOLDER]

creates the data set of train/data/readers/scaled_digits.py in seconds, without TensorFlow or downloads.
"""

import signal

from absl import flags

from train.errors import UserError, define_path, parse_flags, required, run_program


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up like Ctrl-C
    values = flags.FlagValues()
    flags.DEFINE_string("dataset", None, "name of the data set, as tfds writes it", flag_values=values)
    define_path(values, "data_dir", "folder of prepared data sets, tfds's own by default")
    define_path(values, "manual_dir", "folder of files downloaded by hand, DATA_DIR/downloads/manual by default")
    if arguments := parse_flags(values, argv, __doc__):
        raise UserError(f"unexpected argument {arguments[0]!r}; the data set is named by --dataset")
    name = required(values, "dataset", "imagenet2012")
    # Slow imports come after the checks of the command line.
    from train.data.prepare import prepare_and_verify

    prepare_and_verify(name, values["data_dir"].value or "", values["manual_dir"].value or "")
    return 0


if __name__ == "__main__":
    run_program(main)
