"""``daxfs.install`` and ``daxfs.uninstall``, which import what they need when they are called: few programs do."""


def install() -> None:
    """Have safetensors, transformers and huggingface_hub take images in this process, until uninstall().

    "llama.daxfs", "llama.daxfs!/text" and "daxfs://NAME" stand for folders of models then, with weights that are views
    of the image, in code that is not changed. ``python -m daxfs.run script.py`` does this before a program. What was
    served is said at the end of the process, in one line on standard error.

    RuntimeError for a version of these packages that is not known.
    """
    from daxfs import _install  # noqa: PLC0415

    _install.install()


def uninstall() -> None:
    """Give safetensors, transformers and huggingface_hub their own functions back."""
    from daxfs import _install  # noqa: PLC0415

    _install.uninstall()


__all__ = ["install", "uninstall"]
