"""ImageNet, CIFAR-10 and CIFAR-100 of a few images each, in the files in which their authors give them out.

    python -m tests.train.miniatures FOLDER

prepares ImageNet and CIFAR-10 in the folder, as the ones in ``tests/data/tfds`` were; it needs the extra "prepare".
"""

import io
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import resource

from train import prepare

# Real classes, and among their files the ones that tfds mends: a PNG and a CMYK JPEG under a JPEG's name.
IMAGENET_TRAIN = {
    "n01440764": ["n01440764_18.JPEG", "n01440764_36.JPEG", "n01440764_37.JPEG", "n01440764_39.JPEG"],
    "n02105855": ["n02105855_2.JPEG", "n02105855_2933.JPEG", "n02105855_23.JPEG", "n02105855_24.JPEG"],
    "n04596742": ["n04596742_4225.JPEG", "n04596742_1.JPEG", "n04596742_2.JPEG", "n04596742_3.JPEG"],
}
PNG_NAME, CMYK_NAME = "n02105855_2933.JPEG", "n04596742_4225.JPEG"
IMAGENET_VALIDATION = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
SIDES = (64, 64)  # height and width of ImageNet's miniatures

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COARSE_CLASSES = [f"coarse_{number}" for number in range(20)]
FINE_CLASSES = [f"fine_{number}" for number in range(100)]


def picture(number: int, height: int, width: int) -> np.ndarray:
    """Draws a smooth picture, which JPEG keeps well: (height, width, 3) uint8, another for each number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width][..., None] / max(height, width)
    slope = rng.uniform(-1.5, 1.5, (2, 3))
    return np.uint8(127.5 + 100 * np.sin(rng.uniform(0, 6, 3) + y * slope[0] + x * slope[1]))


def encode(image: np.ndarray, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """Writes a picture in a file's format."""
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def imagenet_files() -> dict[str, bytes]:
    """Encodes the pictures of the train and the validation split, by name."""
    names = [name for files in IMAGENET_TRAIN.values() for name in files] + IMAGENET_VALIDATION
    kinds = {PNG_NAME: ("PNG", "RGB"), CMYK_NAME: ("JPEG", "CMYK")}
    return {
        name: encode(picture(number, *SIDES), *kinds.get(name, ("JPEG", "RGB"))) for number, name in enumerate(names)
    }


def write_imagenet(folder: Path) -> None:
    """Writes ILSVRC2012_img_train.tar, a tar of a tar for each class, and ILSVRC2012_img_val.tar."""
    folder.mkdir(parents=True, exist_ok=True)
    files = imagenet_files()
    classes = {f"{wnid}.tar": tar_of({name: files[name] for name in names}) for wnid, names in IMAGENET_TRAIN.items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of({name: files[name] for name in IMAGENET_VALIDATION}))


def cifar_records(count: int, classes: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images (count, 32, 32, 3), and labels (count,) that go round the classes."""
    numbers = np.arange(first, first + count)
    return np.stack([picture(number, 32, 32) for number in numbers]), np.uint8(numbers * 7 % classes)


CIFAR_TRAIN, CIFAR_TEST = 20, 10  # images


def write_cifar10(folder: Path) -> None:
    """Writes cifar-10-binary.tar.gz: a byte of label, then three planes, five files of train and one of test."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = cifar_records(CIFAR_TRAIN, 10, first=0)
    rows = np.concatenate([labels[:, None], _planes(images)], axis=1)
    files = {f"data_batch_{i + 1}.bin": part.tobytes() for i, part in enumerate(np.split(rows, 5))}
    images, labels = cifar_records(CIFAR_TEST, 10, first=CIFAR_TRAIN)
    files["test_batch.bin"] = np.concatenate([labels[:, None], _planes(images)], axis=1).tobytes()
    files["batches.meta.txt"] = _lines(CIFAR10_CLASSES)
    archive = tar_of({f"cifar-10-batches-bin/{name}": data for name, data in files.items()}, "w:gz")
    (folder / "cifar-10-binary.tar.gz").write_bytes(archive)


def write_cifar100(folder: Path) -> None:
    """Writes cifar-100-binary.tar.gz: bytes of the coarse and the fine label, then three planes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, count, first in (("train", CIFAR_TRAIN, 0), ("test", CIFAR_TEST, CIFAR_TRAIN)):
        images, labels = cifar_records(count, 100, first)
        files[f"{name}.bin"] = np.concatenate([(labels // 5)[:, None], labels[:, None], _planes(images)], 1).tobytes()
    files["coarse_label_names.txt"] = _lines(COARSE_CLASSES)
    files["fine_label_names.txt"] = _lines(FINE_CLASSES)
    archive = tar_of({f"cifar-100-binary/{name}": data for name, data in files.items()}, "w:gz")
    (folder / "cifar-100-binary.tar.gz").write_bytes(archive)


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    """Packs files, by name, in a tar."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def _planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def _lines(names: list[str]) -> bytes:
    return ("\n".join(names) + "\n").encode()


def place_download(archive: Path, data_dir: Path, name: str) -> None:
    """Puts an archive where tfds keeps what it has downloaded, as if it had been the real one."""
    ((url, known),) = ((u, i) for u, i in tfds.builder_cls(name).url_infos.items() if u.endswith(archive.name))
    place = data_dir / "downloads" / name / resource.get_dl_fname(url, known.checksum)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(archive.read_bytes())
    info = {"urls": [url], "original_fname": archive.name, "dataset_names": [name]}
    Path(f"{place}.INFO").write_text(json.dumps(info))


def write_all(folder: Path) -> None:
    """Writes ImageNet to ``downloads/manual`` of a folder of prepared data sets, and the others to ``downloads``."""
    write_imagenet(folder / "downloads" / "manual")
    for name, write in (("cifar10", write_cifar10), ("cifar100", write_cifar100)):
        with tempfile.TemporaryDirectory() as temporary:
            write(Path(temporary))
            (archive,) = Path(temporary).iterdir()
            place_download(archive, folder, name)


def main(folder: Path) -> None:
    """Prepares ImageNet and CIFAR-10 in a folder."""
    write_all(folder)
    for name in ("imagenet2012", "cifar10"):
        prepare.main(["prepare", f"--dataset={name}", f"--data_dir={folder}"])
    shutil.rmtree(folder / "downloads")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
