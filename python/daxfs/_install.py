"""``daxfs.install()``: code that nobody can edit takes images where it takes paths of models.

What is hooked are documented entry points: safe_open of safetensors, which all loading of its files goes through,
from_pretrained() of the base classes of transformers and diffusers, models of sentence-transformers, and the downloads
of huggingface_hub. A name that means no image goes to the original. Modules that are not imported yet are hooked when
they are.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from daxfs import _locate, _stand_in

# The versions that are known: from the first, below the second.
KNOWN = {
    "safetensors": ((0, 8), (0, 9)),
    "transformers": ((5, 0), (6, 0)),
    "huggingface_hub": ((1, 0), (3, 0)),
    "diffusers": ((0, 42), (1, 0)),
    "sentence_transformers": ((6, 0), (7, 0)),
}
# Refused when they are imported, and not already when they are installed.
ON_TOP = ("diffusers", "sentence_transformers")

# Methods that take a path first, by their modules. What is missing is refused.
METHODS = {
    "transformers.configuration_utils": ("PreTrainedConfig.from_pretrained", "PreTrainedConfig.get_config_dict"),
    "transformers.modeling_utils": ("PreTrainedModel.from_pretrained",),
    "transformers.tokenization_utils_base": ("PreTrainedTokenizerBase.from_pretrained",),
    "transformers.processing_utils": ("ProcessorMixin.from_pretrained",),
    "transformers.image_processing_base": ("ImageProcessingMixin.from_pretrained",),
    "transformers.feature_extraction_utils": ("FeatureExtractionMixin.from_pretrained",),
    "transformers.generation.configuration_utils": ("GenerationConfig.from_pretrained",),
    "transformers.models.auto.configuration_auto": ("AutoConfig.from_pretrained",),
    "transformers.models.auto.tokenization_auto": ("AutoTokenizer.from_pretrained",),
    "transformers.models.auto.processing_auto": ("AutoProcessor.from_pretrained",),
    "transformers.models.auto.image_processing_auto": ("AutoImageProcessor.from_pretrained",),
    "transformers.models.auto.feature_extraction_auto": ("AutoFeatureExtractor.from_pretrained",),
    "transformers.models.auto.auto_factory": ("_BaseAutoModelClass.from_pretrained",),
    "transformers.pipelines": ("pipeline",),
    "diffusers.configuration_utils": ("ConfigMixin.load_config",),
    "diffusers.models.modeling_utils": ("ModelMixin.from_pretrained",),
    "diffusers.pipelines.pipeline_utils": ("DiffusionPipeline.from_pretrained",),
    "sentence_transformers.base.model": ("BaseModel.__init__",),
    "huggingface_hub._snapshot_download": ("snapshot_download",),
    "huggingface_hub.file_download": ("hf_hub_download",),
}
# What the argument that may be an image is called; where it is not the first one, its place.
NAMES = ("pretrained_model_name_or_path", "pretrained_model_name", "model_name_or_path", "repo_id", "model")
PLACES = {"pipeline": 1, "__init__": 1}


class State:
    """What was hooked, and what it served."""

    def __init__(self, is_child: bool) -> None:
        # Whether a program is run that another one started, and nobody asked what it served.
        self.is_child = is_child
        self.replaced: list[tuple[Any, str, Any]] = []
        # Ours by the originals that they stand for, for names that other modules took.
        self.ours: dict[int, tuple[Any, Any]] = {}
        # Bytes of the files that a place means.
        self.files: dict[_locate.Location, int] = {}
        self.finder: Finder | None = None

    def report(self) -> str:
        """Say in one line what was served."""
        if not self.files:
            return "daxfs: no image was asked for"
        images = sorted({location.source for location in self.files})
        size = sum(self.files.values())
        amount = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
        count = f"{len(self.files)} file{'s' * (len(self.files) > 1)}"
        return f"daxfs: {count} of weights, {amount}, served in place from {', '.join(images)}"


_state: State | None = None


def install(*, is_child: bool = False) -> None:
    """Have safetensors, transformers and what loads by them take images in this process, until uninstall().

    "llama.daxfs", "llama.daxfs!/text" and "daxfs://NAME" stand for folders of models then, with weights that are views
    of the image. What was served is said at the end of the process, in one line on standard error. RuntimeError for a
    version that is not known, when it is installed or imported.
    """
    global _state  # noqa: PLW0603 - one for the process
    if _state is not None:
        return
    for name in KNOWN:
        if name not in ON_TOP:
            _check(name)
    state = State(is_child)
    state.finder = Finder(state)
    _state = state
    try:
        for name in ("safetensors", *METHODS):
            if name in sys.modules:
                _hook(state, sys.modules[name])
    except BaseException:
        uninstall()
        raise
    sys.meta_path.insert(0, state.finder)
    atexit.register(_say)


def uninstall() -> None:
    """Give everything its original back."""
    global _state
    state, _state = _state, None
    if state is None:
        return
    if state.finder in sys.meta_path:
        sys.meta_path.remove(state.finder)
    for owner, name, value in reversed(state.replaced):
        setattr(owner, name, value)
    for original, ours in state.ours.values():
        _replace_everywhere(None, ours, original)
    atexit.unregister(_say)


def _say() -> None:
    if _state is not None and (_state.files or not _state.is_child):
        print(_state.report(), file=sys.stderr)


def _check(name: str) -> None:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return
    first, end = KNOWN[name]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if not first <= numbers < end:
        known = f"from {'.'.join(map(str, first))}, below {'.'.join(map(str, end))}"
        instead = "import daxfs.safetensors or daxfs.transformers in the code instead"
        if name in ON_TOP:
            instead = "give it the folder that image.materialize() writes"
        msg = f"daxfs.install() knows {name} {known}, and {version} is installed: {instead}, or install a version"
        msg += " that is known"
        raise RuntimeError(msg)


class Finder(MetaPathFinder):
    """Hooks modules when they are imported."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.busy: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module as all others do, and have it hooked."""
        if (fullname != "safetensors" and fullname not in METHODS) or fullname in self.busy:
            return None
        self.busy.add(fullname)
        try:
            for finder in sys.meta_path:
                found = finder.find_spec(fullname, path, target)
                if found is not None and found.loader is not None:
                    found.loader = _Hooking(found.loader, self.state)
                    return found
        finally:
            self.busy.discard(fullname)
        return None


class _Hooking(Loader):
    def __init__(self, loader: Any, state: State) -> None:
        self._loader = loader
        self._state = state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if _state is self._state:
            _hook(self._state, module)


def _hook(state: State, module: ModuleType) -> None:
    if module.__name__ == "safetensors":
        _hook_safe_open(state, module)
        return
    package = module.__name__.partition(".")[0]
    if package in ON_TOP:
        _check(package)
    for path in METHODS[module.__name__]:
        *owners, name = path.split(".")
        owner: Any = module
        for step in owners:
            owner = getattr(owner, step, None)
        method = vars(owner).get(name) if owner is not None else None
        if method is None:
            msg = f"daxfs.install(): {module.__name__} has no {path}: this version is not known"
            raise RuntimeError(msg)
        if isinstance(method, classmethod):
            state.replaced.append((owner, name, method))
            setattr(owner, name, classmethod(_standing_in(method.__func__, 1)))
        elif owners:
            state.replaced.append((owner, name, method))
            setattr(owner, name, _standing_in(method, PLACES[name]))
        else:
            ours = _downloading(method) if name == "hf_hub_download" else _standing_in(method, PLACES.get(name, 0))
            _put(state, module, name, method, ours)


def _put(state: State, owner: ModuleType, name: str, original: Any, ours: Any) -> None:
    """Replace a function or class, and the names that modules took of it."""
    state.ours[id(original)] = (original, ours)
    state.replaced.append((owner, name, original))
    setattr(owner, name, ours)
    _replace_everywhere(state, original, ours)


def _replace_everywhere(state: State | None, old: Any, new: Any) -> None:
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if not isinstance(names, dict) or getattr(module, "__name__", "").startswith("daxfs."):
            continue
        for name in [name for name, value in list(names.items()) if value is old]:
            if state is not None:
                state.replaced.append((module, name, old))
            setattr(module, name, new)


def _place(args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """Return the argument that may be an image, and what puts another in its place."""
    if len(args) > place:
        return args[place], lambda value: ((*args[:place], value, *args[place + 1 :]), kwargs)
    name = next((name for name in NAMES if name in kwargs), None)
    if name is None:
        return None, lambda _: (args, kwargs)
    return kwargs[name], lambda value: (args, {**kwargs, name: value})


def _standing_in(function: Callable[..., Any], place: int) -> Callable[..., Any]:
    """Have a function get a folder that stands for an image."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given, put = _place(args, kwargs, place)
        location = _locate.locate(given)
        if location is not None:
            args, kwargs = put(_stand_in.folder(location))
            if function.__name__ == "snapshot_download":
                return args[0] if args else kwargs["repo_id"]
        return function(*args, **kwargs)

    return wrapped


def _downloading(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have hf_hub_download return a file of an image."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        location = _locate.locate(_place(args, kwargs, 0)[0])
        if location is None:
            return function(*args, **kwargs)
        name = args[1] if len(args) > 1 else kwargs["filename"]
        parts = (kwargs.get("subfolder") or "", name)
        path = os.path.join(_stand_in.folder(location), *(part for part in parts if part))  # noqa: PTH118 - a text
        if not os.path.exists(path):  # noqa: PTH110
            msg = f"No such file or directory: {location.join('/'.join(part for part in parts if part))}"
            raise FileNotFoundError(msg)
        return path

    return wrapped


def _hook_safe_open(state: State, module: ModuleType) -> None:
    original = module.safe_open
    # Before anything is replaced: what is no image goes there.
    from daxfs.safetensors import _open, _original  # noqa: F401, PLC0415 - safetensors is needed from here on

    class safe_open(_open.safe_open):  # noqa: N801 - the name of what it stands for
        __doc__ = original.__doc__

        def __init__(self, filename: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(filename, *args, **kwargs)
            if self._location is not None:
                state.files[self._location] = sum(shard.size for shard in self._open().shards)

    safe_open.__module__ = original.__module__
    safe_open.__qualname__ = "safe_open"
    _put(state, module, "safe_open", original, safe_open)
