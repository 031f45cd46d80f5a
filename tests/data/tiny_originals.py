"""Tiny image files as the originals are, written byte by byte or picture by picture."""

import numpy as np
from PIL import Image
from scipy import io


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_cifar(path, labels, images):
    """Byte by byte: the labels, then the red, the green and the blue plane, row by row."""
    with open(path, "wb") as handle:
        for label, image in zip(labels, images, strict=True):
            handle.write(bytes(label))
            for channel in range(3):
                for row in range(32):
                    handle.write(bytes(image[row, :, channel].tolist()))


def write_picture(path, size=(40, 30), colour=(200, 30, 60), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


def write_originals(folder):
    """Every dataset, in the folders that the profiles name: CIFAR has 3 classes and 10 test images, ImageNet 3 classes with 2 each."""
    ten = folder / "cifar-10-batches-bin"
    ten.mkdir(parents=True)
    (ten / "batches.meta.txt").write_text("airplane\nautomobile\nbird\n")
    for number in range(1, 6):
        write_cifar(ten / f"data_batch_{number}.bin", [[place % 3] for place in range(8)], pixels(8, 32, 32, 3, seed=number))
    labels = [place % 3 for place in range(10)]
    write_cifar(ten / "test_batch.bin", [[label] for label in labels], pixels(10, 32, 32, 3))

    hundred = folder / "cifar-100-binary"
    hundred.mkdir()
    (hundred / "fine_label_names.txt").write_text("apple\nbear\nclock\n")
    write_cifar(hundred / "train.bin", [[0, place % 3] for place in range(30)], pixels(30, 32, 32, 3, seed=7))
    write_cifar(hundred / "test.bin", [[0, label] for label in labels], pixels(10, 32, 32, 3, seed=8))

    for name in ("CIFAR-10-C", "CIFAR-100-C"):
        (folder / name).mkdir()
        np.save(folder / name / "fog.npy", pixels(50, 32, 32, 3, seed=9))
        np.save(folder / name / "labels.npy", np.tile(np.array(labels, np.uint8), 5))

    (folder / "svhn").mkdir()
    digits = {"X": np.moveaxis(pixels(25, 32, 32, 3, seed=10), 0, -1), "y": (np.arange(25, dtype=np.uint8) % 10 + 1)[:, None]}
    io.savemat(folder / "svhn" / "test_32x32.mat", digits)

    (folder / "dtd" / "labels").mkdir(parents=True)
    textures = [f"banded/banded_{number:04}.jpg" for number in range(4)]
    (folder / "dtd" / "labels" / "test1.txt").write_text("\n".join(textures) + "\n")
    for number, name in enumerate(textures):
        write_picture(folder / "dtd" / "images" / name, colour=(60 * number,) * 3)

    places = folder / "places365"
    for number in range(12):
        write_picture(places / "val_256" / f"Places365_val_{number:08}.jpg", size=(48, 64), colour=(20 * number,) * 3)
    (places / "categories_places365.txt").write_text("/a/airfield 0\n/a/airplane_cabin 1\n")
    (places / "places365_val.txt").write_text("".join(f"Places365_val_{number:08}.jpg {number % 2}\n" for number in range(12)))

    for place, name in enumerate(("n01", "n02", "n03")):
        for number in range(6):
            write_picture(folder / "imagenet" / "train" / name / f"{number}.JPEG", colour=(80 * place, 40 * number, 0))
        for number in range(2):
            write_picture(folder / "imagenet" / "val" / name / f"{number}.JPEG", colour=(80 * place, 40 * number, 255))
            for severity in range(1, 6):
                path = folder / "ImageNet-C" / "fog" / str(severity) / name / f"{number}.JPEG"
                write_picture(path, colour=(80 * place, 40 * number, 50 * severity))
        write_picture(folder / "imagenetv2-matched-frequency-format-val" / str(place) / "a.jpeg")
    write_picture(folder / "imagenet-a" / "n02" / "a.jpg")
    write_picture(folder / "imagenet-r" / "n03" / "a.jpg")
