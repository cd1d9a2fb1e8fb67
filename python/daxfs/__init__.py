"""Model weights in shared memory: open a DAXFS image and use its files and tensors without a copy.

    with daxfs.open("model.daxfs") as image:  # a path, a descriptor, or nothing: $DAXFS_IMAGE
        config = json.loads(image["config.json"].read_text())
        weights = image.tensors()  # one safetensors file, or all shards of a checkpoint
        w = numpy.asarray(weights["lm_head.weight"])

Arrays, memoryviews and DLPack capsules are views of the image's memory: they copy nothing, stay valid after the image
is closed, and are read-only unless it was opened with ``private=True``.

    gpu = image.to("cuda:0")  # a copy in the memory of an NVIDIA GPU; the driver is all that is needed
    t = torch.from_dlpack(gpu["model.safetensors"]["lm_head.weight"])
"""

from daxfs._daxfs import (
    CopyWarning,
    DaxfsError,
    DeviceError,
    DeviceFile,
    DeviceHandle,
    DeviceImage,
    DeviceLookup,
    DeviceMemoryError,
    DeviceTensor,
    DeviceTensorPart,
    DeviceTensors,
    Directory,
    File,
    FormatError,
    Image,
    NotFoundError,
    NotPlacedError,
    Original,
    SourceError,
    Tensor,
    Tensors,
    Watch,
    __version__,
    devices,
    explain_faults,
    open,
    pack,
)
from daxfs._holder import Access, HeldCopy, HeldImage, Holder, HolderHealth, Served, serve
from daxfs._hooks import caches, install, uninstall
from daxfs._include import get_include

__all__ = [
    "Access",
    "CopyWarning",
    "DaxfsError",
    "DeviceError",
    "DeviceFile",
    "DeviceHandle",
    "DeviceImage",
    "DeviceLookup",
    "DeviceMemoryError",
    "DeviceTensor",
    "DeviceTensorPart",
    "DeviceTensors",
    "Directory",
    "File",
    "FormatError",
    "HeldCopy",
    "HeldImage",
    "Holder",
    "HolderHealth",
    "Image",
    "NotFoundError",
    "NotPlacedError",
    "Original",
    "Served",
    "SourceError",
    "Tensor",
    "Tensors",
    "Watch",
    "__version__",
    "caches",
    "devices",
    "explain_faults",
    "get_include",
    "install",
    "open",
    "pack",
    "serve",
    "uninstall",
]
