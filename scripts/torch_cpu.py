#!/usr/bin/env python3
"""Makes PyPI's torch for Linux compute on the processor alone, without the 3 GB of NVIDIA's packages.

    scripts/torch_cpu.py SITE-PACKAGES

torch's libraries are linked with those of CUDA: the loader wants the files, every version that is asked of them, and
every symbol that is a variable. Here each file that is missing is made, in torch/lib, with all the functions that
torch's libraries take from it. They find no GPU. What torch computes on the processor is its own, unchanged code.

Needs cc and readelf. The driver's library, libcuda, is not made: torch loads it only where there is a GPU, and
whatever else in a process asks for it must get the machine's own.
"""

# ruff: noqa: S603
from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

# Names of the libraries that are made: cudart, cublas, cudnn, cupti, nccl, nvrtc, nvshmem and their kind.
OF_CUDA = re.compile(r"lib(cu|nccl|nv)\w*\.so\.\d+")
DRIVER = "libcuda.so.1"
# Functions of a library whose symbols have no versions can be told by their names alone.
UNVERSIONED = re.compile(r"_*(cu|nccl|nv)[a-zA-Z_]\w*")

# What functions do, the first pattern that fits. 100 is cudaErrorNoDevice, and an error to the other libraries as well.
BODIES = {
    "words": (r".*(Error|Status)_?(String|Name)|.*_strerror|.*GetErrorString", 'return (long)"there is no GPU";'),
    "last": (r"cuda(GetLast|PeekAtLast)Error", "return 0;"),
    "capturing": (r"cudaStreamIsCapturing", "*(int *)b = 0; return 0;"),
    "count": (r"cudaGetDeviceCount", "*(int *)a = 0; return 100;"),
    "refuse": (r".*", "return 100;"),
}


@dataclass
class Library:
    """What torch's libraries take from one library of CUDA."""

    versions: set[str] = field(default_factory=set)
    functions: dict[str, str] = field(default_factory=dict)  # with its version, or ""


def read(program: Path) -> str:
    """Read the dynamic symbols, versions and needs of a library."""
    command = ["readelf", "--wide", "--dynamic", "--version-info", "--dyn-syms", str(program)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wanted(programs: list[Path]) -> dict[str, Library]:
    """Find the missing libraries, by name."""
    texts = [text for text in map(read, programs) if f"[{DRIVER}]" not in text]
    libraries: dict[str, Library] = {}
    owners: dict[str, str] = {}  # of versions
    defined: set[str] = set()
    undefined: set[tuple[str, str]] = set()
    for text in texts:
        for name in re.findall(r"\(NEEDED\).*\[(.+)\]", text):
            if OF_CUDA.fullmatch(name):
                libraries.setdefault(name, Library())
        file = ""
        for kind, name in re.findall(r"(File|Name): (\S+)", text):
            file = name if kind == "File" else file
            if kind == "Name" and OF_CUDA.fullmatch(file):
                owners[name] = file
        # Number, value, size, type, binding, visibility, section, and name@version.
        for place, symbol in re.findall(r"^ +\d+: [0-9a-f]+ +\S+ +\w+ +\w+ +\w+ +(\w+) (\S+)", text, re.MULTILINE):
            name, _, version = symbol.partition("@")
            if place == "UND":
                undefined.add((name, version.lstrip("@")))
            else:
                defined.add(name)
    for version, owner in owners.items():
        libraries.setdefault(owner, Library()).versions.add(version)
    bare = next((name for name in sorted(libraries) if not libraries[name].versions and "nccl" in name), None)
    for name, version in sorted(undefined):
        if version in owners:
            libraries[owners[version]].functions[name] = version
        elif not version and bare and name not in defined and UNVERSIONED.fullmatch(name):
            # Any library that is loaded may have it.
            libraries[bare].functions[name] = ""
    return libraries


def source(functions: dict[str, str]) -> str:
    """C code: the bodies, and each function as another name of one."""
    lines = [f"static long {name}(void *a, void *b) {{ {code} }}" for name, (_, code) in BODIES.items()]
    for function in functions:
        body = next(name for name, (pattern, _) in BODIES.items() if re.fullmatch(pattern, function))
        lines.append(f'long {function}(void *, void *) __attribute__((alias("{body}")));')
    return "\n".join(lines) + "\n"


def version_script(library: Library) -> str:
    """Which function has which version."""
    names = {version: [f for f, v in library.functions.items() if v == version] for version in library.versions}
    return "\n".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in functions)} }};" for version, functions in names.items()
    )


def build(name: str, library: Library, folder: Path) -> None:
    """Compile one library."""
    with tempfile.TemporaryDirectory() as scratch:
        code, script = Path(scratch, "library.c"), Path(scratch, "versions")
        code.write_text(source(library.functions))
        script.write_text(version_script(library))
        command = ["cc", "-w", "-O1", "-shared", "-fPIC", "-fno-builtin", f"-Wl,-soname,{name}"]
        command += [f"-Wl,--version-script={script}"] if library.versions else []
        subprocess.run([*command, "-o", str(folder / name), str(code)], check=True)


def forget_requirements(site_packages: Path) -> None:
    """Take NVIDIA's packages off what torch says that it needs, lest another installation fetches them."""
    for metadata in site_packages.glob("torch-*.dist-info/METADATA"):
        lines = metadata.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not re.match(r"Requires-Dist: (nvidia|cuda|triton)", line)]
        metadata.write_text("".join(kept), encoding="utf-8")


def main(site_packages: Path) -> int:
    """Make all that is missing, and have torch compute."""
    folder = site_packages / "torch/lib"
    libraries = wanted([*folder.glob("*.so*"), *folder.parent.glob("_C*.so")])
    for name, library in libraries.items():
        build(name, library, folder)
    forget_requirements(site_packages)
    # Without a look at the packages of whoever runs this.
    code = "import sys; sys.path.insert(0, sys.argv[1]); import torch; assert float(torch.ones(2) @ torch.ones(2)) == 2"
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", code, str(site_packages)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
