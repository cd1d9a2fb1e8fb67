"""Sessions of onnxruntime over images: initializers with external data are views of the image.

    session = daxfs.onnx.session("llama.daxfs", "model.onnx")
    session.run(None, inputs)

The model is read and checked here; onnxruntime gets the weights as memory, and no file of them. What it copies all the
same is a table of docs/ml.md.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

import daxfs
from daxfs import _locate

Source = Union[str, os.PathLike[str], int, daxfs.Image]

__all__ = ["session"]

# numpy's type of as many bytes for what onnxruntime takes in place, by the number in the format.
_TYPES = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
_TYPES.update({12: "<u4", 13: "<u8", 16: "<u2", 17: "u1", 18: "u1", 19: "u1", 20: "u1", 24: "u1"})
# Bits of an element for the others: complex numbers, and types of 4 and 2 bits, whose arrays have other shapes.
_BITS = {14: 64, 15: 128, 21: 4, 22: 4, 23: 4, 25: 2, 26: 2}
# onnxruntime copies what is smaller, and reads it (as shapes) before it has the values that it is given.
_SMALL = 128
# What a message of protobuf can hold.
_MOST = (1 << 31) - 1
_PREPACKING = "session.disable_prepacking"
_CPU = "CPUExecutionProvider"
_AS_IT_IS = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def session(
    source: Source,
    path: str = "",
    *,
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
    **options: Any,
) -> onnxruntime.InferenceSession:
    """Return a session of a model in an image, whose initializers with external data are views of the image.

    source: the name of an image, of a model in it ("llama.daxfs!/model.onnx"), a descriptor, or an opened image.
    path: the model in the image, or below what is named. Without it, and for a directory, the one that is there.
    sess_options: for this session alone, since the values are added to it. Weights are used in place if its
        graph_optimization_level is ORT_DISABLE_ALL, which it is by default here; else they are copied, with a
        CopyWarning. Where it does not say whether kernels of the CPU make copies of weights that are faster for them
        (session.disable_prepacking), they make none.
    providers, options: those of onnxruntime.InferenceSession. Providers other than the CPU's copy weights.

    External data that is not as the model says (places outside of its directory, ranges outside of files, lengths
    that do not fit the shape) is a FormatError, and a file that is not there a NotFoundError.
    """
    image, place = _opened(source, path)
    file = _model_at(image, place)
    data = file.read_bytes()
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        msg = f"{file.path}: no model of ONNX: {error}"
        raise daxfs.FormatError(msg) from error
    external = _External(image, file.path, _MOST - len(data))
    if external.resolve(model):
        data = model.SerializeToString()
    providers = [_CPU] if providers is None else list(providers)
    chosen = onnxruntime.SessionOptions() if sess_options is None else sess_options
    if sess_options is None:
        chosen.graph_optimization_level = _AS_IT_IS
    try:
        chosen.get_session_config_entry(_PREPACKING)
    except RuntimeError:
        chosen.add_session_config_entry(_PREPACKING, "1")
    if external.values:
        _give(chosen, external.values, in_place=providers == [_CPU])
    # A native session has pointers to the values, and does not own them; so have options, of which it has a copy.
    _keep(chosen, external.values)
    made = onnxruntime.InferenceSession(data, chosen, providers=providers, **options)
    _keep(made, external.values)
    _keep(made._sess, external.values)
    return made


def _give(chosen: Any, values: dict[str, Any], *, in_place: bool) -> None:
    # The model itself has these values then, wherever they are looked up. A session makes a copy of each.
    chosen.add_external_initializers(list(values), list(values.values()))
    if not in_place:
        return
    if chosen.graph_optimization_level != _AS_IT_IS:
        # Optimizations turn weights and keep their names, and a session would take the values of the name.
        msg = "onnxruntime copies the weights, since it may rewrite the graph: for views, set graph_optimization_level"
        warnings.warn(f"{msg} of sess_options to ORT_DISABLE_ALL", daxfs.CopyWarning, stacklevel=3)
        return
    for name, value in values.items():
        chosen.add_initializer(name, value)


def _keep(owner: Any, values: dict[str, Any]) -> None:
    weakref.finalize(owner, len, values).atexit = False


def _opened(source: Source, path: str) -> tuple[daxfs.Image, str]:
    if isinstance(source, daxfs.Image):
        return source, _locate._clean(path)
    location = None if isinstance(source, int) else _locate.locate(source)
    if location is None:
        return daxfs.open(source), _locate._clean(path)
    return location.open(), _locate._clean(f"{location.path}/{path}")


def _model_at(image: daxfs.Image, path: str) -> daxfs.File:
    found = _locate.find(image, path)
    if isinstance(found, daxfs.File):
        return found
    models = image.glob(f"{path}/*.onnx" if path else "*.onnx")
    if len(models) != 1:
        msg = f"{path or 'the root of the image'} has {len(models)} files *.onnx: name one (path=)"
        raise daxfs.NotFoundError(msg)
    return models[0]


def _children(message: Message, but: str = "") -> Iterator[Message]:
    """Return the messages in the fields of a message, less those of one field."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.name != but:
            yield from (value,) if isinstance(value, Message) else value


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Find the tensors in a message, however deep: the parser has bounded that."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for child in _children(message):
        yield from _tensors(child)


def _others(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Find the tensors that are no initializers of the model's own graph: attributes, branches, functions."""
    for part in (*_children(model, "graph"), *_children(model.graph, "initializer")):
        yield from _tensors(part)


class _External:
    """Values of a model's tensors that lie in other files of the image."""

    def __init__(self, image: daxfs.Image, model: str, room: int) -> None:
        self.values: dict[str, onnxruntime.OrtValue] = {}
        self._image = image
        self._model = model
        self._room = room
        self._files: dict[str, daxfs.File] = {}

    def resolve(self, model: onnx.ModelProto) -> bool:
        """Take views of what onnxruntime takes in place, and put all else into the model: tell whether that was any."""
        changed = False
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                file, offset, length = self._range(tensor)
                dtype = _TYPES.get(tensor.data_type)
                if dtype is None or length < _SMALL:
                    self._put(tensor, file, offset, length)
                    changed = True
                    continue
                if tensor.name in self.values:
                    raise self._refused(tensor, "its name is that of two initializers, and has to be one's")
                self.values[tensor.name] = self._view(tensor, file, offset, length, dtype)
        for tensor in _others(model):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                self._put(tensor, *self._range(tensor))
                changed = True
        return changed

    def _put(self, tensor: onnx.TensorProto, file: daxfs.File, offset: int, length: int) -> None:
        """Copy a value into the model."""
        if length > self._room:
            raise self._refused(tensor, f"{length} bytes have to be copied into the model, with {self._room} left")
        self._room -= length
        tensor.raw_data = file.read_at(offset, length)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT

    def _view(
        self, tensor: onnx.TensorProto, file: daxfs.File, offset: int, length: int, dtype: str
    ) -> onnxruntime.OrtValue:
        array = np.frombuffer(memoryview(file), np.uint8, length, offset).view(dtype).reshape(tuple(tensor.dims))
        if not array.flags.aligned:
            what = f"{self._model}: initializer {tensor.name!r} lies at {offset} of {file.path}"
            warnings.warn(f"{what}, which its type {dtype} does not permit: copied", daxfs.CopyWarning, stacklevel=5)
            array = array.copy()
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.data_type)

    def _range(self, tensor: onnx.TensorProto) -> tuple[daxfs.File, int, int]:
        """Return where a tensor's bytes are, all checked."""
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            if entry.key in entries:
                raise self._refused(tensor, f"{entry.key!r} is said twice")
            entries[entry.key] = entry.value
        file = self._file(tensor, entries.get("location", ""))
        offset = self._number(tensor, "offset", entries.get("offset", "0"))
        expected = self._expected(tensor)
        length = self._number(tensor, "length", entries.get("length", str(expected)))
        if length != expected:
            raise self._refused(tensor, f"length {length}, and its shape takes {expected} bytes")
        if offset + length > file.size:
            raise self._refused(tensor, f"{offset}..{offset + length} is outside {file.path} ({file.size} bytes)")
        return file, offset, length

    def _expected(self, tensor: onnx.TensorProto) -> int:
        dtype = _TYPES.get(tensor.data_type)
        bits = _BITS.get(tensor.data_type) if dtype is None else np.dtype(dtype).itemsize * 8
        if bits is None:
            raise self._refused(tensor, f"data type {tensor.data_type} has no external data, or is not known")
        if any(dim < 0 for dim in tensor.dims):
            raise self._refused(tensor, f"shape {list(tensor.dims)} is below 0")
        for dim in tensor.dims:
            bits *= dim
            # No file is larger; the product of many dimensions would be.
            if bits > 1 << 70 and 0 not in tensor.dims:
                raise self._refused(tensor, f"shape {list(tensor.dims)[:8]} takes more bytes than any file has")
        return -(-bits // 8)

    def _number(self, tensor: onnx.TensorProto, key: str, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            raise self._refused(tensor, f"{key} {text[:40]!r} is no number of bytes")
        return int(text)

    def _file(self, tensor: onnx.TensorProto, location: str) -> daxfs.File:
        if location in self._files:
            return self._files[location]
        if not location or location.startswith("/") or ".." in location.split("/") or "\0" in location:
            raise self._refused(tensor, f"location {location[:200]!r} is no path below the model's directory")
        path = _locate._clean(f"{self._model.rpartition('/')[0]}/{location}")
        try:
            found = self._image / path
        except daxfs.NotFoundError as error:
            msg = f"{self._model}: tensor {tensor.name!r}: no {path!r} in the image: pack it beside the model"
            raise daxfs.NotFoundError(msg) from error
        if not isinstance(found, daxfs.File):
            raise self._refused(tensor, f"location {location[:200]!r} is a directory, not a file")
        self._files[location] = found
        return found

    def _refused(self, tensor: onnx.TensorProto, why: str) -> daxfs.FormatError:
        return daxfs.FormatError(f"{self._model}: tensor {tensor.name[:200]!r}: {why}")
