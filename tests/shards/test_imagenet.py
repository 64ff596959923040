"""ImageNet as downloaded and as class folders; the validation images' classes from the devkit or Kaggle's table."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from raw_data import encoded, put, tar_of
from scipy.io import savemat

from shards.errors import MstlError
from shards.sources import read_source
from shards.sources.imagenet import class_titles

DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"

WNIDS = {"n02": {"n02_1.JPEG": 1, "n02_2.JPEG": 2}, "n01": {"n01_1.JPEG": 3}, "n03": {"n03_9.JPEG": 4}}


def imagenet(root, *, as_tar):
    files = {w: {name: encoded(seed, "JPEG") for name, seed in part.items()} for w, part in WNIDS.items()}
    if as_tar:
        inner = {f"{w}.tar": tar_of(part) for w, part in files.items()}
        put(root / "ILSVRC2012_img_train.tar", tar_of(inner))
    else:
        for w, part in files.items():
            for name, data in part.items():
                put(root / "train" / w / name, data)
    put(root / "val/n02/ILSVRC2012_val_1.JPEG", encoded(9, "JPEG"))
    put(root / "val/n02/.DS_Store", b"x")
    return root


def test_imagenet_reads_tar_of_tars_in_place_and_class_folders_alike(tmp_path):
    listings = [read_source("imagenet", imagenet(tmp_path / str(i), as_tar=bool(i))) for i in range(2)]
    for listing in listings:
        assert listing.classes == ("n01", "n02", "n03")
        assert listing.modality == "natural" and not listing.carve_val
        found = {(item.key, item.split, item.label): item.blob.read() for item in listing.items}
        assert found == {
            ("n01_1", "train", 0): encoded(3, "JPEG"),
            ("n02_1", "train", 1): encoded(1, "JPEG"),
            ("n02_2", "train", 1): encoded(2, "JPEG"),
            ("n03_9", "train", 2): encoded(4, "JPEG"),
            ("ILSVRC2012_val_1", "val", 1): encoded(9, "JPEG"),
        }
    assert "ILSVRC2012_img_train.tar/n01.tar/n01_1.JPEG" in {item.origin for item in listings[1].items}


def test_imagenet_without_val_says_so(tmp_path):
    put(tmp_path / "train/n01/a.JPEG", encoded(1))
    listing = read_source("imagenet", tmp_path)
    assert [item.split for item in listing.items] == ["train"]
    assert listing.notes == (
        "there are no validation images (val/ or ILSVRC2012_img_val.tar), so the shard set gets no val split",
    )
    assert listing.mismatches == ()


def test_imagenet_class_tar_without_end_blocks_does_not_run_into_the_next(tmp_path):
    image = encoded(1)
    inner = tar_of({"n01_1.JPEG": image})
    bare = inner[: 512 + -(-len(image) // 512) * 512]
    put(tmp_path / "ILSVRC2012_img_train.tar", tar_of({"n01.tar": bare, "n02.tar": tar_of({"n02_1.JPEG": image})}))
    listing = read_source("imagenet", tmp_path)
    assert [(item.key, item.label) for item in listing.items] == [("n01_1", 0), ("n02_1", 1)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"val/n01/a.JPEG": b"x"}, "neither ILSVRC2012_img_train.tar nor train/"),
        ({"train/n01/a.JPEG": b"x", "val/n07/a.JPEG": b"x"}, "1 of 1 are not in train: n07"),
        (
            {"train/n01/a.JPEG": b"x", "val/a.JPEG": b"x"},
            r"without class folders.*no ILSVRC2012_devkit_t12\.tar\.gz.*val/<wnid>",
        ),
        (
            {"train/n01/a.JPEG": b"x", "ILSVRC2012_img_val.tar": tar_of({"a.JPEG": b"x"})},
            r"without their classes.*Put ILSVRC2012_devkit_t12\.tar\.gz",
        ),
        ({"train/n01/a.JPEG": b"x", "ILSVRC2012_img_val.tar": b"x"}, "not a whole uncompressed tar"),
        ({"ILSVRC2012_img_train.tar": gzip.compress(tar_of({"n01.tar": tar_of({"a.JPEG": b"x"})}))}, "gunzip"),
        (
            {"ILSVRC2012_img_train.tar": tar_of({"n01.tar": gzip.compress(tar_of({"a.JPEG": b"x"}))})},
            r"n01\.tar: it is compressed",
        ),
        ({"ILSVRC2012_img_train.tar": tar_of({"../n01.tar": tar_of({"a.JPEG": b"x"})})}, r"`\.\.`"),
        ({"ILSVRC2012_img_train.tar": tar_of({"n01.tar": tar_of({"/a.JPEG": b"x"})})}, r"n01\.tar: .*absolute"),
        (
            {"ILSVRC2012_img_train.tar": tar_of({"n01.tar": tar_of({"a.JPEG": b"x"}), "b/n01.tar": tar_of({})})},
            "class n01 is in it twice",
        ),
        ({"train/n01/readme.txt": b"x"}, "no training images"),
        ({"ILSVRC2012_img_train.tar": b"x" * 2000}, "not a whole uncompressed tar"),
    ],
)
def test_imagenet_refuses(tmp_path, files, message):
    for name, data in files.items():
        put(tmp_path / name, data)
    with pytest.raises(MstlError, match=message):
        read_source("imagenet", tmp_path)


def test_imagenet_refuses_a_truncated_tar(tmp_path):
    imagenet(tmp_path, as_tar=True)
    tar = tmp_path / "ILSVRC2012_img_train.tar"
    tar.write_bytes(tar.read_bytes()[:-14000])
    with pytest.raises(MstlError, match="not a whole uncompressed tar"):
        read_source("imagenet", tmp_path)


class Steps:
    """Progress that remembers."""

    def __init__(self):
        self.pieces = {}

    def start(self, total, what):
        self.pieces[what] = [total, 0]
        self.done = self.pieces[what]

    def advance(self, n=1):
        self.done[1] += n


def test_listing_shows_its_progress_class_by_class(tmp_path):
    steps = Steps()
    read_source("imagenet", imagenet(tmp_path, as_tar=True), progress=steps)
    assert steps.pieces == {"listing ILSVRC2012_img_train.tar": [3, 3], "listing val/": [1, 1]}


def test_linked_images_and_class_folders_are_read(tmp_path):
    put(tmp_path / "far/a.JPEG", encoded(1, "JPEG"))
    put(tmp_path / "raw/train/n01/b.JPEG", encoded(2, "JPEG"))
    (tmp_path / "raw/train/n02").symlink_to(tmp_path / "far")
    (tmp_path / "raw/train/n01/c.JPEG").symlink_to(tmp_path / "far/a.JPEG")
    listing = read_source("imagenet", tmp_path / "raw")
    assert {item.origin: item.blob.read() for item in listing.items} == {
        "train/n01/b.JPEG": encoded(2, "JPEG"),
        "train/n01/c.JPEG": encoded(1, "JPEG"),
        "train/n02/a.JPEG": encoded(1, "JPEG"),
    }


def test_links_that_lead_nowhere_are_told(tmp_path):
    put(tmp_path / "train/n01/b.JPEG", encoded(2, "JPEG"))
    (tmp_path / "train/n02").symlink_to(tmp_path / "gone")
    with pytest.raises(MstlError, match=r"train/n02: it is a link to .*gone, which is not there"):
        read_source("imagenet", tmp_path)
    (tmp_path / "train/n02").unlink()
    (tmp_path / "train/n01/c.JPEG").symlink_to(tmp_path / "gone")
    with pytest.raises(MstlError, match=r"cannot be read .*n01/c\.JPEG"):
        read_source("imagenet", tmp_path)


# Class names and counts


def test_the_1000_classes_have_names():
    titles = class_titles()
    assert len(titles) == 1000 and list(titles) == sorted(titles)
    assert titles["n01440764"].startswith("tench") and titles["n03792782"].startswith("mountain bike")
    assert titles["n02012849"] == titles["n03126707"] == "crane"  # the bird and the machine


@pytest.mark.parametrize("count", [1000, 999])
def test_a_full_imagenet_is_held_to_its_published_counts(tmp_path, count):
    inner = tar_of({"a.JPEG": b"x"})[:1536]
    wnids = list(class_titles())[:count]
    put(tmp_path / "ILSVRC2012_img_train.tar", tar_of({f"{w}.tar": inner for w in wnids}))
    listing = read_source("imagenet", tmp_path)
    assert listing.classes == tuple(wnids) and list(listing.titles) == wnids
    absent = "there are no validation images (val/ or ILSVRC2012_img_val.tar), so the shard set gets no val split"
    assert listing.mismatches == (
        f"train has {count:,} images, the published split has 1,281,167",
        f"{absent}; the published one has 50,000 images",
    )
    assert listing.notes == ()


def test_other_classes_than_imagenets_have_no_published_counts(tmp_path):
    put(tmp_path / "train/n99999999/a.JPEG", b"x")
    listing = read_source("imagenet", tmp_path)
    assert (listing.expected, listing.mismatches) == (None, ())


# Validation images without class folders

# The devkit numbers classes its own way (neither by wnid nor from 0), and its table also holds their ancestors.
SYNSETS = {490: ("n00000003", 0), 1: ("n00000002", 0), 2: ("n00000001", 0), 1001: ("n00000009", 2)}
VAL_WNIDS = ("n00000002", "n00000003", "n00000002", "n00000001")  # of images 1 to 4
KAGGLE = "ImageId,PredictionString\r\n" + "".join(
    f"ILSVRC2012_val_{n:08d},{VAL_WNIDS[n - 1]} 85 1 499 272 {VAL_WNIDS[n - 1]} 1 2 3 4 \r\n" for n in (3, 1, 4, 2)
)


def devkit(truth=b"1\n490\n1\n2\n", synsets=SYNSETS):
    rows = np.zeros((len(synsets), 1), [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")])
    for row, (number, (wnid, children)) in zip(rows[:, 0], synsets.items(), strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"], row["num_children"] = float(number), wnid, "w", children
    out = io.BytesIO()
    savemat(out, {"synsets": rows}, do_compression=True)
    return {TRUTH: truth, META: out.getvalue()}


def packed(files):
    return gzip.compress(tar_of({f"{DEVKIT}/{name}": data for name, data in files.items()}))


def raw(root, *, tar=True, train=("n00000001", "n00000002", "n00000003")):
    for wnid in train:
        put(root / "train" / wnid / f"{wnid}_1.JPEG", encoded(100, "JPEG"))
    images = {f"ILSVRC2012_val_{n:08d}.JPEG": encoded(n, "JPEG") for n in (2, 1, 3, 4)}
    if tar:
        put(root / "ILSVRC2012_img_val.tar", tar_of(images))
    else:
        for name, data in images.items():
            put(root / "val" / name, data)
    return root


@pytest.mark.parametrize("tar", [True, False])
@pytest.mark.parametrize("told_by", ["packed devkit", "devkit", "kaggle"])
def test_flat_validation_images_get_their_classes(tmp_path, tar, told_by):
    raw(tmp_path, tar=tar)
    if told_by == "packed devkit":
        put(tmp_path / f"{DEVKIT}.tar.gz", packed(devkit()))
    elif told_by == "devkit":
        for name, data in devkit().items():
            put(tmp_path / DEVKIT / name, data)
    else:
        put(tmp_path / "LOC_val_solution.csv", KAGGLE.encode())
    listing = read_source("imagenet", tmp_path)
    val = {item.key: item for item in listing.items if item.split == "val"}
    assert len(val) == 4 and listing.notes == ()
    for number, wnid in enumerate(VAL_WNIDS, start=1):
        item = val[f"ILSVRC2012_val_{number:08d}"]
        assert listing.classes[item.label] == wnid and item.blob.read() == encoded(number, "JPEG")
        assert item.origin == f"{'ILSVRC2012_img_val.tar' if tar else 'val'}/ILSVRC2012_val_{number:08d}.JPEG"


def test_validation_images_of_other_classes_are_left_out_and_told(tmp_path):
    raw(tmp_path, train=("n00000001", "n00000003"))
    put(tmp_path / f"{DEVKIT}.tar.gz", packed(devkit()))
    listing = read_source("imagenet", tmp_path)
    assert sorted(item.key[-1] for item in listing.items if item.split == "val") == ["2", "4"]
    assert listing.notes == ("2 of 4 validation images are of classes train does not have: left out",)


def test_val_class_folders_come_before_a_val_tar(tmp_path):
    raw(tmp_path)
    put(tmp_path / "val/n00000001/x.JPEG", encoded(7, "JPEG"))
    listing = read_source("imagenet", tmp_path)
    assert [item.origin for item in listing.items if item.split == "val"] == ["val/n00000001/x.JPEG"]
    assert listing.notes == ("both val/ and ILSVRC2012_img_val.tar are there: val/ was used",)


def linked_devkit():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in (TRUTH, META):
            info = tarfile.TarInfo(f"{DEVKIT}/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (f"{DEVKIT}.tar.gz", b"no gzip", "not a whole"),
        (f"{DEVKIT}.tar.gz", packed(devkit())[:200], r"devkit_t12\.tar\.gz: it is not a whole"),
        (f"{DEVKIT}.tar.gz", gzip.compress(b"x" * 2000), "not a whole"),
        (f"{DEVKIT}.tar.gz", packed({TRUTH: b"1"}), "has no .*meta.mat"),
        (f"{DEVKIT}.tar.gz", linked_devkit(), "is a link"),
        (f"{DEVKIT}.tar.gz", gzip.compress(tar_of({"../x": b""})), r"`\.\.`"),
        (f"{DEVKIT}.tar.gz", packed(devkit(b"1\nx\n1\n2\n")), "more than numbers"),
        (f"{DEVKIT}.tar.gz", packed(devkit(b"1\n1001\n1\n2\n")), "names class 1001"),
        (f"{DEVKIT}.tar.gz", packed(devkit(b"1\n490\n1\n")), "none of the 3 whose classes are known"),
        (f"{DEVKIT}.tar.gz", packed(devkit() | {META: b"MATLAB"}), "meta.mat cannot be read"),
        (f"{DEVKIT}.tar.gz", packed(devkit() | {META: devkit()[META][:300]}), "meta.mat cannot be read"),
        (f"{DEVKIT}/{TRUTH}", b"1", f"{DEVKIT}: it has no data/meta.mat"),
        ("LOC_val_solution.csv", b"id,x\n", "header row"),
        ("LOC_val_solution.csv", b"ImageId,PredictionString\nILSVRC2012_val_00000001,dog 1 2 3 4\n", "line 2 names"),
        ("LOC_val_solution.csv", b'ImageId,PredictionString\n"' + b"x" * 140_000, "cannot be read as a table"),
        ("LOC_val_solution.csv", b"ImageId,PredictionString\nx,n00000001 1 2 3 4\n", "line 2 names"),
    ],
)
def test_broken_tellers_of_classes_are_refused(tmp_path, name, data, message):
    put(raw(tmp_path) / name, data)
    with pytest.raises(MstlError, match=message):
        read_source("imagenet", tmp_path)


def test_a_devkit_that_unpacks_to_far_more_than_it_should_is_refused(tmp_path, monkeypatch):
    put(raw(tmp_path) / f"{DEVKIT}.tar.gz", gzip.compress(bytes(2000)))
    monkeypatch.setattr("shards.sources.imagenet_val._MAX_DEVKIT_BYTES", 1999)
    with pytest.raises(MstlError, match="unpacks to more than 1,999 bytes"):
        read_source("imagenet", tmp_path)


def test_a_validation_image_by_another_name_is_refused(tmp_path):
    put(raw(tmp_path, tar=False) / "val/dog.JPEG", b"x")
    put(tmp_path / f"{DEVKIT}.tar.gz", packed(devkit()))
    with pytest.raises(MstlError, match=r"val/dog\.JPEG .*none of the 4 .*as downloaded"):
        read_source("imagenet", tmp_path)
