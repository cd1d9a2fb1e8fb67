"""Control of a holder from Python, and a holder of one's own for tests and notebooks."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Literal, NamedTuple, Union

from daxfs import _daxfs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Protocol

    from typing_extensions import Self, TypeAlias

    class _HasFileno(Protocol):
        def fileno(self) -> int: ...

    _Path: TypeAlias = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]
    _Source: TypeAlias = Union[_Path, int, _HasFileno]
    _Progress: TypeAlias = Callable[[int, int], object]
    _Globs: TypeAlias = Union[str, list[str]]

# How long a holder of one's own has to end before it is killed.
_PATIENCE = 10.0


@dataclass(frozen=True)
class HeldCopy:
    """A copy of an image in a GPU's memory, or in host memory for GPUs, that its holder keeps."""

    device: str | None
    """UUID of the GPU, as the driver's tools write it; None for host memory, which all GPUs read in place."""
    placement: str | None
    """Identity of the placement that it was copied by, as `daxfs place --json` shows it; None for the whole image."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class HeldImage:
    """An image as its holder describes it."""

    name: str
    """Its name: daxfs.open("daxfs://NAME")."""
    generation: int
    """Counts up with each load and swap of the holder."""
    size: int
    """Bytes of its memory."""
    memory: str
    """Kind of memory, such as "sealed memfd"."""
    page_size: int | None
    """Size of its pages in bytes; None when it is not known."""
    content_hash: str | None
    """What daxfs.open(expect=...) takes; None for an image without hashes."""
    loaded: int
    """When it was loaded, in seconds since 1970."""
    attaches: int
    """How often it was attached."""
    copies: tuple[HeldCopy, ...] = ()
    """Copies for GPUs."""


@dataclass(frozen=True)
class HolderHealth:
    """How a holder is."""

    pid: int
    """Its process, as it is numbered where the holder runs."""
    images: int
    """Images that it holds."""
    bytes: int
    """Bytes of their memory."""
    uptime: int
    """Seconds since it started."""


class Access(NamedTuple):
    """Who may attach to an image. Both lists are empty for everybody who may connect."""

    uids: tuple[int, ...] = ()
    """Users, beside root and the holder's own."""
    gids: tuple[int, ...] = ()
    """Groups, primary or supplementary."""


def _image(row: _daxfs._Held) -> HeldImage:
    name, generation, size, memory, page_size, content_hash, loaded, attaches, rows = row
    copies = tuple(HeldCopy(*copy) for copy in rows)
    return HeldImage(name, generation, size, memory, page_size, content_hash, loaded, attaches, copies)


class Holder:
    """A holder, by its socket: `daxfs serve` or daxfs.serve() runs one.

    Each call is a connection of its own, so an object needs no closing, works in several threads, and finds the new
    holder after the old one was replaced. A `with` statement is for symmetry with daxfs.serve().

    ConnectionError when no holder answers, TimeoutError when one is there and does not answer in time, PermissionError
    for what this user may not do, NotFoundError for an image that is not held.
    """

    def __init__(self, socket: _Path | None = None, *, timeout: float = 10.0) -> None:
        """Name the holder; nothing is asked yet.

        socket: its path; None for $DAXFS_SOCKET, else $XDG_RUNTIME_DIR/daxfs.sock, else /run/daxfs.sock.
        timeout: seconds that each answer may take. During a load the holder reports its progress several times a
            second, so the load itself may take longer.
        """
        path = _daxfs.holder_socket() if socket is None else socket
        self._socket = Path(os.fsdecode(path)).absolute()
        self._timeout = float(timeout)

    @property
    def socket(self) -> Path:
        """The path of the socket."""
        return self._socket

    @property
    def timeout(self) -> float:
        """Seconds that each answer may take."""
        return self._timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        pass

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._socket)!r})"

    def address(self, name: str) -> str:
        """Return the name of an image for daxfs.open() and for every verb of the command."""
        return f"daxfs+unix://{self._socket}/{name}"

    def open(self, name: str, **options: Any) -> _daxfs.Image:
        """Attach to an image: daxfs.open() with its address, the timeout of this object, and these options."""
        options.setdefault("timeout", self._timeout)
        return _daxfs.open(self.address(name), **options)

    def list(self) -> list[HeldImage]:
        """Return all images that this user may attach to, in order of their names."""
        return [_image(row) for row in _daxfs.holder_list(self._socket, self._timeout)]

    def health(self) -> HolderHealth:
        """Ask how the holder is."""
        return HolderHealth(*_daxfs.holder_health(self._socket, self._timeout))

    def wait(self, timeout: float = 60.0) -> HolderHealth:
        """Wait until the holder answers: one that was just started answers when its images are loaded."""
        return HolderHealth(*_daxfs.holder_wait(self._socket, timeout))

    def load(  # noqa: PLR0913
        self,
        name: str,
        source: _Source,
        *,
        into: str | None = None,
        shared: bool = False,
        no_copy: bool = False,
        align_tensors: bool | int | Literal["page"] | None = None,
        exact: bool = False,
        dedupe: bool = False,
        links: Literal["auto", "keep", "follow", "refuse"] = "auto",
        exclude: _Globs | None = None,
        include: _Globs | None = None,
        weights_only: bool = False,
        signature: _Path | None = None,
        expect: str | None = None,
        allow_uids: Iterable[int] = (),
        allow_gids: Iterable[int] = (),
        progress: _Progress | None = None,
    ) -> HeldImage:
        """Have the holder hold another image, and return it when it is held.

        name: letters, digits, ".", "_" and "-"; FileExistsError when the holder has an image of that name.
        source: a directory, an image file, or memory with an image, as daxfs.open() takes it. It is opened here and
            sent as a descriptor. A directory is packed with the rights of this user, here where the holder has others.
        into: "memfd", "memfd:4K", "memfd:2M", "memfd:1G", "udmabuf" or "heap:NAME"; by default what the holder was
            started with.
        shared: leave the memfd open to writing, so that devices can pin it. Every client can then change what all
            others read.
        no_copy: refuse a source that would have to be copied.
        align_tensors, exact, dedupe, links, exclude, include, weights_only: as for daxfs.pack(); for directories.
        signature: the file with the signature of the content, or the OCI image layout with those of cosign; by default
            what lies beside the source.
        expect: the content hash that the image must have.
        allow_uids, allow_gids: users and groups that may attach; without any, everybody who may connect.
        progress: called with the bytes done and all bytes, 0 while they are not known; False gives the load up, as
            Ctrl-C does.
        """
        return self._load(name, source, replace=False, **_options(locals()))

    def swap(  # noqa: PLR0913
        self,
        name: str,
        source: _Source,
        *,
        into: str | None = None,
        shared: bool = False,
        no_copy: bool = False,
        align_tensors: bool | int | Literal["page"] | None = None,
        exact: bool = False,
        dedupe: bool = False,
        links: Literal["auto", "keep", "follow", "refuse"] = "auto",
        exclude: _Globs | None = None,
        include: _Globs | None = None,
        weights_only: bool = False,
        signature: _Path | None = None,
        expect: str | None = None,
        allow_uids: Iterable[int] = (),
        allow_gids: Iterable[int] = (),
        progress: _Progress | None = None,
    ) -> HeldImage:
        """Replace an image under its name, in one step, and return the new one; the arguments are those of load().

        Clients that have the old image keep it; Image.is_current() and Image.watch() tell them. The name may also be
        new. Who may attach stays as it was, and so does the kind of memory unless into or shared says otherwise. The
        machine needs memory for both images until the new one is complete.
        """
        return self._load(name, source, replace=True, **_options(locals()))

    def _load(self, name: str, source: _Source, **options: Any) -> HeldImage:
        for key in ("allow_uids", "allow_gids"):
            options[key] = list(options[key])
        return _image(_daxfs.holder_load(self._socket, self._timeout, name, source, **options))

    def drop(self, name: str) -> None:
        """Have the holder forget an image. Clients that have it keep it."""
        _daxfs.holder_drop(self._socket, self._timeout, name)

    def stop(self) -> None:
        """End the holder, and return when it has ended. Clients keep what they have."""
        _daxfs.holder_stop(self._socket, self._timeout)

    def access(
        self,
        name: str,
        *,
        uids: Iterable[int] | None = None,
        gids: Iterable[int] | None = None,
        everybody: bool = False,
    ) -> Access:
        """Return who may attach to an image, after the change where one is asked for.

        uids, gids: the users and groups that may attach from now on, besides root and the holder's own user.
        everybody: everybody who may connect may attach from now on.
        """
        change = (list(uids or ()), list(gids or ()))
        if everybody and any(change):
            raise ValueError("everybody=True goes with neither uids nor gids")
        if not everybody and not any(change) and (uids is not None or gids is not None):
            raise ValueError("no users and no groups would be everybody: say everybody=True")
        changes = everybody or any(change)
        _, after = _daxfs.holder_access(self._socket, self._timeout, name, change if changes else None)
        return Access(*map(tuple, after))

    def upload(  # noqa: PLR0913
        self,
        name: str,
        device: str = "cuda:0",
        *,
        plan: str | os.PathLike[str] | dict[str, Any] | None = None,
        rank: int | None = None,
        verify: bool = False,
        threads: int | None = None,
        piece: int | None = None,
        progress: _Progress | None = None,
    ) -> bool:
        """Put a copy of an image into a GPU's memory, for the holder to keep; False when it had that one already.

        From then on Image.to() of every process maps the copy instead of making one. The copy goes with the image.

        device: "cuda:N", or "cuda-host:N" for host memory on the NUMA node of that GPU, which all GPUs read in place.
        plan, rank: copy what a placement plan gives this rank.
        verify, threads, piece, progress: as for Image.to().
        """
        copy, copied = _daxfs.holder_upload(
            self._socket,
            self._timeout,
            name,
            device,
            plan=plan,
            rank=rank,
            verify=verify,
            threads=threads,
            piece=piece,
            progress=progress,
        )
        copy.close()
        return copied

    def uploads(self, name: str) -> tuple[HeldCopy, ...]:
        """Return the copies of an image that the holder keeps for GPUs."""
        for image in self.list():
            if image.name == name:
                return image.copies
        raise _daxfs.NotFoundError(f"the holder at {self._socket} has no image {name!r}, or not for this user")


def _options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of load() and swap() that are options."""
    return {key: value for key, value in arguments.items() if key not in ("self", "name", "source")}


def _command() -> list[str]:
    """Return the command daxfs of this interpreter's package."""
    script = Path(sysconfig.get_path("scripts")) / "daxfs"
    return [str(script)] if script.exists() else [sys.executable, "-m", "daxfs"]


def _end(process: subprocess.Popen[bytes], folder: str, owner: int) -> None:
    # A process that was forked off has the object, and neither the holder nor its folder.
    if os.getpid() != owner:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


class Served(Holder):
    """A holder of one's own: daxfs.serve() starts it, and the `with` statement, close() or Python's end ends it."""

    def __init__(self, *options: str, timeout: float = 10.0) -> None:
        """Start a holder without images; options are those of `daxfs serve`."""
        folder = tempfile.mkdtemp(prefix="daxfs-")
        super().__init__(Path(folder) / "s.sock", timeout=timeout)
        self._log = Path(folder) / "log"
        command = [*_command(), "serve", "--socket", str(self._socket), *options]
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C in a terminal is for this process.
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._finalizer = weakref.finalize(self, _end, self._process, folder, os.getpid())
        self._finalizer.atexit = False
        atexit.register(self._finalizer)
        try:
            self._until_it_answers()
        except BaseException:
            self.close()
            raise

    def _until_it_answers(self) -> None:
        while self._process.poll() is None:
            with contextlib.suppress(ConnectionError, TimeoutError):
                self.wait(0.5)
                return
        status = self._process.returncode
        raise ConnectionError(f"the holder has ended with status {status}: {self.log().strip()}")

    def log(self) -> str:
        """Return the log lines of the holder so far."""
        return self._log.read_text(errors="backslashreplace")

    @property
    def pid(self) -> int:
        """The process of the holder."""
        return self._process.pid

    def close(self) -> None:
        """End the holder, and remove its socket. Images that were opened stay valid."""
        self._finalizer()
        atexit.unregister(self._finalizer)

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        self.close()


def serve(
    images: Mapping[str, _Source] | None = None,
    /,
    *options: str,
    timeout: float = 10.0,
    **more: _Source,
) -> Served:
    """Start a holder of one's own with these images, for tests and notebooks; return when all are held.

        with daxfs.serve(llama="weights") as holder, holder.open("llama") as image:
            ...

    The holder is a process of its own, with a socket in a private directory that only this user may enter. It ends with
    the `with` statement, by close(), or with Python; images that were opened stay valid. A process that is killed
    leaves it behind.

    images, more: a source for each name, as for Holder.load(). A mapping takes names that are no identifiers.
    options: options of `daxfs serve`, such as "--into", "memfd:4K".
    timeout: seconds that each answer may take, as for Holder.
    """
    holder = Served(*options, timeout=timeout)
    try:
        for name, source in {**(images or {}), **more}.items():
            holder.load(name, source)
    except BaseException:
        holder.close()
        raise
    return holder


# As users name them, in pickles also.
for _class in (Access, HeldCopy, HeldImage, Holder, HolderHealth, Served):
    _class.__module__ = "daxfs"
