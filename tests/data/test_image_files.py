"""Readers of original image formats, on tiny files that are written here as the originals are."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from scipy import io
from tiny_originals import pixels, write_cifar, write_picture

from moebench.data.image_files import (
    Pictures,
    Resized,
    cifar10,
    cifar100,
    cifar_corrupted,
    class_folders,
    dtd,
    imagenet_corrupted,
    part,
    places365,
    svhn,
)
from moebench.errors import MoebenchError

NAMES = ("airplane", "automobile", "bird")


@pytest.fixture
def cifar10_folder(tmp_path):
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")  # the original ends in an empty line
    for number in range(1, 6):
        write_cifar(tmp_path / f"data_batch_{number}.bin", [[number % 3]], pixels(1, 32, 32, 3, seed=number))
    write_cifar(tmp_path / "test_batch.bin", [[2], [0]], pixels(2, 32, 32, 3))
    return tmp_path


def test_cifar10(cifar10_folder):
    test = cifar10(cifar10_folder, "test")
    assert np.array_equal(test.images, pixels(2, 32, 32, 3))
    assert test.labels.tolist() == [2, 0]
    assert test.classes == NAMES
    train = cifar10(cifar10_folder, "train")
    assert np.array_equal(train.images, np.concatenate([pixels(1, 32, 32, 3, seed=number) for number in range(1, 6)]))
    assert train.labels.tolist() == [1, 2, 0, 1, 2]


def test_names_are_cut_at_line_feeds_alone(cifar10_folder):
    names = ("a\u2028b", "\u3000c", "d\xa0")
    (cifar10_folder / "batches.meta.txt").write_bytes("\r\n".join(names).encode())
    assert cifar10(cifar10_folder, "test").classes == names


def test_cifar100_takes_the_fine_label(tmp_path):
    (tmp_path / "fine_label_names.txt").write_text("apple\nbear\n")
    write_cifar(tmp_path / "test.bin", [[19, 1], [4, 0]], pixels(2, 32, 32, 3))
    test = cifar100(tmp_path, "test")
    assert np.array_equal(test.images, pixels(2, 32, 32, 3))
    assert (test.labels.tolist(), test.classes) == ([1, 0], ("apple", "bear"))
    with pytest.raises(MoebenchError, match=r"train\.bin: cannot be read: No such file"):
        cifar100(tmp_path, "train")


def test_cifar_mistakes(cifar10_folder):
    with pytest.raises(MoebenchError, match="split 'tset' \\(did you mean 'test'\\?\\); should be one of train, test"):
        cifar10(cifar10_folder, "tset")
    file = cifar10_folder / "test_batch.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(MoebenchError, match=r"test_batch\.bin: 6145 bytes; should be a multiple of 3073"):
        cifar10(cifar10_folder, "test")
    file.write_bytes(b"\x07" + whole[1:])
    with pytest.raises(MoebenchError, match=r"test_batch\.bin: labels are 0 to 7; should be 0 to 2"):
        cifar10(cifar10_folder, "test")
    (cifar10_folder / "batches.meta.txt").write_bytes(b"\xff")
    with pytest.raises(MoebenchError, match=r"batches\.meta\.txt: not UTF-8"):
        cifar10(cifar10_folder, "test")


def test_cifar_corrupted(tmp_path):
    images, labels = pixels(20, 32, 32, 3), np.tile(np.array([2, 0, 1, 1], np.uint8), 5)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    for severity in range(1, 6):
        part = cifar_corrupted(tmp_path, "fog", severity, NAMES)
        assert np.array_equal(part.images[:], images[4 * severity - 4 : 4 * severity])
        assert part.labels.tolist() == [2, 0, 1, 1]
        assert isinstance(part.images, np.memmap)
    with pytest.raises(MoebenchError, match=r"frog\.npy: not there \(did you mean 'fog'\?\); .* holds: fog"):
        cifar_corrupted(tmp_path, "frog", 1, NAMES)
    with pytest.raises(MoebenchError, match="severity 0; should be 1 to 5"):
        cifar_corrupted(tmp_path, "fog", 0, NAMES)
    with pytest.raises(MoebenchError, match=r"labels\.npy: labels are 0 to 2; should be 0 to 1"):
        cifar_corrupted(tmp_path, "fog", 1, NAMES[:2])
    np.save(tmp_path / "labels.npy", labels[:4])
    with pytest.raises(MoebenchError, match=r"labels\.npy: uint8 of shape \(4,\); should be integers \(20,\)"):
        cifar_corrupted(tmp_path, "fog", 1, NAMES)
    np.save(tmp_path / "fog.npy", images[:3])
    with pytest.raises(MoebenchError, match=r"fog\.npy: uint8 of shape \(3, 32, 32, 3\); should be uint8 \(50000"):
        cifar_corrupted(tmp_path, "fog", 1, NAMES)
    np.save(tmp_path / "fog.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(MoebenchError, match=r"fog\.npy: not a readable array .*; get the original again"):
        cifar_corrupted(tmp_path, "fog", 1, NAMES)


def test_svhn(tmp_path):
    images = pixels(3, 32, 32, 3)
    io.savemat(tmp_path / "test_32x32.mat", {"X": np.moveaxis(images, 0, -1), "y": np.array([[10], [1], [9]], np.uint8)})
    test = svhn(tmp_path, "test")
    assert np.array_equal(test.images, images)
    assert test.labels.tolist() == [0, 1, 9]
    io.savemat(tmp_path / "train_32x32.mat", {"X": np.moveaxis(images, 0, -1), "y": np.array([[10], [0], [9]], np.uint8)})
    with pytest.raises(MoebenchError, match=r"train_32x32\.mat: labels are 0 to 10; should be 1 to 10"):
        svhn(tmp_path, "train")
    io.savemat(tmp_path / "train_32x32.mat", {"X": images, "y": np.ones((3, 1), np.uint8)})
    with pytest.raises(MoebenchError, match=r"train_32x32\.mat: X is uint8 \(3, 32, 32, 3\)"):
        svhn(tmp_path, "train")
    (tmp_path / "train_32x32.mat").write_bytes(b"no matrix")
    with pytest.raises(MoebenchError, match=r"train_32x32\.mat: cannot be read"):
        svhn(tmp_path, "train")
    with pytest.raises(MoebenchError, match=r"extra_32x32\.mat: cannot be read"):
        svhn(tmp_path, "extra")


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 96), (71, 50), (10, 7)])
def test_a_picture_is_resized_by_its_shorter_edge_and_cropped_to_its_middle(tmp_path, size):
    """A ramp from left to right and one from top to bottom, so that a pixel tells where it came from."""
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 240, width)[None], np.linspace(0, 240, height)[:, None]
    Image.fromarray(ramp).save(tmp_path / "a.png")
    side, scale = 32, min(size) / 32
    image = Pictures([str(tmp_path / "a.png")], side)[0]
    assert image.shape == (32, 32, 3)
    offset = (np.arange(side) + 0.5 - side / 2) * scale
    for axis, length in ((1, width), (0, height)):
        expected = 120 + 240 / (length - 1) * offset
        found = image[..., 1 - axis].mean(1 - axis)
        half_a_pixel = scale / 2 * 240 / (length - 1)  # where what is cut off is an odd number
        assert np.abs(found - expected)[4:-4].max() < 2 + half_a_pixel


def test_resized_images_are_those_of_pictures(tmp_path):
    images = pixels(3, 32, 32, 3)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    pictures = Pictures([str(tmp_path / f"{number}.png") for number in range(3)], 20)
    resized = Resized(images, 20)
    assert (len(resized), resized.shape) == (3, (3, 20, 20, 3))
    for index in (1, slice(1, 3), np.array([2, 0]), slice(0, 0)):
        np.testing.assert_array_equal(resized[index], pictures[index])


def test_a_part_of_a_set_keeps_pictures_undecoded(tmp_path):
    for number in range(4):
        write_picture(tmp_path / f"n{number}" / "a.png", colour=(number, number, number))
    (tmp_path / "n1" / "a.png").write_bytes(b"no picture")
    some = part(class_folders(tmp_path, 8), np.array([3, 2]))
    assert isinstance(some.images, Pictures)
    assert (some.images[:].max((1, 2, 3)).tolist(), some.labels.tolist()) == ([3, 2], [3, 2])


def test_class_folders(tmp_path):
    write_picture(tmp_path / "n2" / "b.JPEG")
    write_picture(tmp_path / "n2" / "a.png", mode="L")
    write_picture(tmp_path / "n1" / "c.jpg", mode="CMYK")
    (tmp_path / "n1" / "notes.txt").write_text("no picture")
    (tmp_path / "README").write_text("no class")
    found = class_folders(tmp_path, 24)
    assert (found.classes, found.labels.tolist()) == (("n1", "n2"), [0, 1, 1])
    assert found.images.shape == (3, 24, 24, 3)
    assert np.abs(found.images[0].astype(int) - (200, 30, 60)).max() < 12
    assert len(np.unique(found.images[1])) == 1
    assert np.array_equal(found.images[1:], found.images[np.array([1, 2])])
    assert np.array_equal(found.images[-1], found.images[2])
    # ImageNet-A and -R have some of the thousand classes.
    assert class_folders(tmp_path, 24, ("n0", "n2", "n1")).labels.tolist() == [2, 1, 1]
    with pytest.raises(MoebenchError, match=r"n1: not a class.*there are 2, from 'n0' on"):
        class_folders(tmp_path, 24, ("n0", "n2"))
    (tmp_path / "n1" / "d.jpg").write_bytes(b"no picture")
    with pytest.raises(MoebenchError, match=r"n1/d\.jpg: cannot be decoded as a picture"):
        _ = class_folders(tmp_path, 24).images[:]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MoebenchError, match="empty: holds no pictures"):
        class_folders(tmp_path / "empty", 24)
    with pytest.raises(MoebenchError, match="nowhere: not a folder"):
        class_folders(tmp_path / "nowhere", 24)


def test_numbered_folders_are_places_not_sorted_names(tmp_path):
    """ImageNet-V2's folders are 0, 1, 10, 11, ..., as names sort."""
    for number in (0, 2, 10):
        write_picture(tmp_path / str(number) / "a.jpg")
    names = tuple(f"n{number:02}" for number in range(11))
    assert class_folders(tmp_path, 8, names).labels.tolist() == [0, 10, 2]
    with pytest.raises(MoebenchError, match="10: not a class"):
        class_folders(tmp_path, 8, names[:10])


def test_imagenet_corrupted(tmp_path):
    write_picture(tmp_path / "fog" / "1" / "n1" / "a.JPEG", colour=(10, 10, 10))
    write_picture(tmp_path / "fog" / "2" / "n1" / "a.JPEG", colour=(90, 90, 90))
    assert imagenet_corrupted(tmp_path, "fog", 2, 8).images[0].max() == 90
    with pytest.raises(MoebenchError, match=r"fog/3: not a folder"):
        imagenet_corrupted(tmp_path, "fog", 3, 8)
    with pytest.raises(MoebenchError, match="severity 6"):
        imagenet_corrupted(tmp_path, "fog", 6, 8)


def test_dtd(tmp_path):
    for name in ("banded/banded_0001.jpg", "banded/banded_0002.jpg", "dotted/dotted_0001.jpg"):
        write_picture(tmp_path / "images" / name)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "test1.txt").write_text("dotted/dotted_0001.jpg\nbanded/banded_0002.jpg\n")
    test = dtd(tmp_path, "test", 1, 16)
    assert (test.classes, test.labels.tolist(), test.images.shape) == (("banded", "dotted"), [1, 0], (2, 16, 16, 3))
    assert test.images[:].shape == (2, 16, 16, 3)
    for line, message in (
        ("striped/a.jpg", r"test2\.txt:1: 'striped/a\.jpg'; should be <class>/<picture>"),
        ("dotted/../../a.jpg", r"test2\.txt:1"),
        ("dotted/dotted_0009.jpg", r"dotted_0009\.jpg: not there, but in .*test2\.txt:1"),
    ):
        (tmp_path / "labels" / "test2.txt").write_text(line + "\n")
        with pytest.raises(MoebenchError, match=message):
            dtd(tmp_path, "test", 2, 16)
    with pytest.raises(MoebenchError, match=r"test3\.txt: cannot be read"):
        dtd(tmp_path, "test", 3, 16)


def test_places365(tmp_path):
    (tmp_path / "categories_places365.txt").write_text("/a/airfield 0\n/a/airplane_cabin 1\n")
    listed = tmp_path / "places365_val.txt"
    listed.write_text("Places365_val_00000001.jpg 1\nPlaces365_val_00000002.jpg 0\n")
    for number in (1, 2):
        write_picture(tmp_path / "val_256" / f"Places365_val_0000000{number}.jpg", colour=(100 * number,) * 3)
    found = places365(tmp_path, 32)
    assert (found.classes, found.labels.tolist()) == (("/a/airfield", "/a/airplane_cabin"), [1, 0])
    assert found.images[:].mean((1, 2, 3)).tolist() == [100, 200]
    listed.write_text("Places365_val_00000001.jpg 2\n")
    with pytest.raises(MoebenchError, match=r"places365_val\.txt: labels are 2 to 2; should be 0 to 1"):
        places365(tmp_path, 32)
    listed.write_text("Places365_val_00000001.jpg\n")
    with pytest.raises(MoebenchError, match=r"places365_val\.txt:1: .* should be a name, a space and a number"):
        places365(tmp_path, 32)
    listed.write_text("Places365_val_00000003.jpg 1\n")
    with pytest.raises(MoebenchError, match=r"00000003\.jpg: not there"):
        places365(tmp_path, 32)


def test_memory_does_not_grow_with_the_set(tmp_path):
    """5,000 names of one picture of 64 x 64: decoding them one after the other holds no more than a few at a time."""
    write_picture(tmp_path / "a" / "0.png", size=(64, 64))
    pictures = Pictures([str(tmp_path / "a" / "0.png")] * 5000, 64)
    tracemalloc.start()
    try:
        total = sum(int(pictures[index][0, 0, 0]) for index in range(1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 200 * 1000
    assert peak < 1_000_000  # all of them are 12 MB a thousand
