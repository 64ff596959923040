"""Small DICOM files and NIfTI volumes made in code, and slow references for how they are to be shown."""

import io
import math
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from shards.sources import SourceOptions, read_source

VECTORS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
_PAIRS = ("LR", "AP", "HF")


def body(seed=0, heads=3, backs=5, lefts=7, low=-1400, high=200):
    """Hounsfield units by place: [towards the head, towards the back, towards the left], as slices are to be shown."""
    return np.random.default_rng(seed).integers(low, high, (heads, backs, lefts)).astype(np.int16)


def laid(anatomy, letters):
    """The array whose axes run where the letters say, built place by place."""
    axis_of = {"H": 0, "F": 0, "P": 1, "A": 1, "L": 2, "R": 2}
    shape = [anatomy.shape[axis_of[letter]] for letter in letters]
    out = np.empty(shape, anatomy.dtype)
    for place in np.ndindex(*shape):
        at = [0, 0, 0]
        for letter, index in zip(letters, place, strict=True):
            size = anatomy.shape[axis_of[letter]]
            at[axis_of[letter]] = index if letter in "HPL" else size - 1 - index
        out[place] = anatomy[tuple(at)]
    return out


def shown(values, center, width, bits=8):
    """DICOM PS3.3 C.11.2.1.2.1, pixel by pixel as the standard prints it, to nearest whole numbers."""
    top = 2**bits - 1
    out = np.empty(values.shape, np.int64)
    for place, x in np.ndenumerate(values):
        if x <= center - 0.5 - (width - 1) / 2:
            y = 0
        elif x > center - 0.5 + (width - 1) / 2:
            y = top
        else:
            y = ((float(x) - (center - 0.5)) / (width - 1) + 0.5) * (top - 0) + 0
        out[place] = math.floor(y + 0.5)
    return out


def dicom(pixels, **elements) -> Dataset:
    """A CT slice of stored values (rows, columns), or frames of them, that any element may change; None removes one."""
    pixels = np.ascontiguousarray(pixels)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid(entropy_srcs=["fixed"])
    bits = 8 * pixels.itemsize
    fields = {
        "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PatientID": "ID-1", "PatientName": "DOE^JOHN",
        "StudyInstanceUID": "1.2.3", "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2], "Columns": pixels.shape[-1], "BitsAllocated": bits, "BitsStored": bits,
        "HighBit": bits - 1, "PixelRepresentation": int(pixels.dtype.kind == "i"), "RescaleSlope": 1,
        "RescaleIntercept": 0, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelData": pixels.tobytes(),
    }  # fmt: skip
    if pixels.ndim == 3:
        fields["NumberOfFrames"] = len(pixels)
    for name, value in {**fields, **elements}.items():
        if value is not None:
            setattr(ds, name, value)
    return ds


def radiograph(pixels, **elements) -> Dataset:
    """A radiograph: no rescaling, no orientation, no window."""
    bare = dict.fromkeys(("ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"))
    return dicom(pixels, **{"Modality": "DX", "ImageType": ["ORIGINAL", "PRIMARY"], **bare, **elements})


def saved(path: Path, ds: Dataset) -> Path:
    """Write a DICOM file, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, anatomy, letters="LPH", *, slope=1.0, inter=0.0, spacing=(0.7, 0.8, 5.0)) -> Path:
    """Write a volume whose axes run where the letters say, with an affine that says so."""
    stored = laid(anatomy, letters)
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, letter in enumerate(letters):
        x, y, z = VECTORS[letter]
        affine[:3, axis] = np.array([-x, -y, z]) * spacing[_PAIRS.index(_pair(letter))]  # NIfTI: right, front
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_slope_inter(slope, inter)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def _pair(letter):
    return next(pair for pair in _PAIRS if letter in pair)


def listed(root, **options):
    return read_source("dicom", root, SourceOptions(**options))


def image_of(item):
    return np.asarray(Image.open(io.BytesIO(item.blob.read())))


def only_image(tmp_path, ds, **options):
    saved(tmp_path / "a/one.dcm", ds)
    [item] = listed(tmp_path, **options).items
    return image_of(item)
