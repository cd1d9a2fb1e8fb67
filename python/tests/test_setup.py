"""The set-up of the project: locks that are whole, and a cache folder whose folders are whole or not there."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, ModuleType]:
    """The modules of scripts/, with a cache folder of their own."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    modules = {}
    for name in ("cache", "environment", "lock"):
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        modules[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, modules[name])
        spec.loader.exec_module(modules[name])
    return modules


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_folder_is_made_once(scripts: dict[str, ModuleType]) -> None:
    made, count = scripts["cache"].made, []

    def make(folder: Path) -> None:
        count.append(folder)
        (folder / "file").write_text("whole")

    first, second = made("kind", "name", [b"a"], make), made("kind", "name", [b"a"], make)
    assert (first, len(count), names(first)) == (second, 1, ["file"])
    assert made("kind", "name", [b"b"], make) != first
    assert made("kind", "name", [b"a", b""], make) != first


def test_an_interrupted_folder_is_not_there(scripts: dict[str, ModuleType]) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    cache = scripts["cache"]
    with pytest.raises(KeyboardInterrupt):
        cache.made("kind", "name", [b"a"], fail)
    assert names(cache.cache_dir() / "kind") == []
    # What a process left that was killed is removed by the next.
    left = cache.cache_dir() / "kind" / f".name-{cache.key([b'a'])}.unfinished"
    left.mkdir()
    (left / "half").touch()
    folder = cache.made("kind", "name", [b"a"], lambda folder: (folder / "file").touch())
    assert (names(folder), names(folder.parent)) == (["file"], [folder.name])


def test_several_makers_make_one_folder(scripts: dict[str, ModuleType]) -> None:
    count: list[int] = []
    found: list[Path] = []
    inside = threading.Event()

    def make(folder: Path) -> None:
        count.append(1)
        inside.wait(0.2)
        (folder / "file").touch()

    def run() -> None:
        found.append(scripts["cache"].made("kind", "name", [b"a"], make))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(count), len(set(found)), len(found)) == (1, 1, 4)


def test_packages_are_unpacked_by_one_process(tmp_path: Path) -> None:
    for name, text in (
        ("apt-get", 'echo >>"$COUNT"; sleep 0.2; : >a.deb'),
        ("dpkg", 'mkdir "$3"; echo "$2" >"$3/file"'),
    ):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    count, folder = tmp_path / "count", tmp_path / "cache/kernel"
    unpack = "import sys, packages as p; f = p.Path(sys.argv[1]); p.unpack(['a'], f, (f / 'file').exists)"
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "tests/kernel"),
        "COUNT": str(count),
    }
    command = [sys.executable, "-c", unpack, str(folder)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (count.read_text(), names(folder), names(folder.parent)) == ("\n", ["file"], ["kernel"])


def test_a_virtual_environment_is_thin_and_keeps_its_wheel(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    environment = scripts["environment"]
    layer = tmp_path / "layer"
    packages = environment.packages_of(layer)
    packages.mkdir(parents=True)
    (packages / "from_layer.py").write_text("place = __file__")
    (layer / "bin").mkdir()
    (layer / "bin/say").write_bytes(b"#!@PYTHON@\nimport from_layer, sys; print(sys.prefix)\n")
    (layer / "bin/say").chmod(0o755)
    environment.made = lambda _name, _locks: layer
    venv = tmp_path / "venv"
    environment.link("demo", venv, ROOT)
    own = environment.packages_of(venv)
    assert sorted(path.name for path in own.iterdir() if path.suffix == ".py") == []
    (own / "wheel.py").touch()
    said = subprocess.run([venv / "bin/say"], check=True, capture_output=True, text=True).stdout
    assert said.strip() == str(venv)
    # Of other layers it is changed in place; the layer is not written to.
    environment.link("tests", venv, ROOT)
    assert (own / "wheel.py").exists()
    assert '"tests"' in (venv / "environment.json").read_text()
    environment.link("demo", venv, ROOT)
    assert '"tests"' in (venv / "environment.json").read_text(), "the tests' environment has what the demo needs"
    assert names(packages) in (["from_layer.py"], ["__pycache__", "from_layer.py"])


@pytest.fixture
def environment(scripts: dict[str, ModuleType], tmp_path: Path) -> ModuleType:
    """The module, with one empty layer."""
    module = scripts["environment"]
    layer = tmp_path / "layer"
    module.packages_of(layer).mkdir(parents=True)
    (layer / "bin").mkdir()
    module.made = lambda _name, _locks: layer
    return module


def foreign(place: Path) -> Path:
    """Somebody's virtual environment, with something in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (place / "kept").write_text("kept")
    return place


def refusal(environment: ModuleType, venv: Path) -> str:
    with pytest.raises(SystemExit) as refused:
        environment.link("demo", venv, ROOT)
    return str(refused.value)


def test_the_environment_of_others_is_left_alone(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = foreign(tmp_path / "other")
    assert "other is an environment that the project's scripts have not made: remove it" in refusal(environment, other)
    link = tmp_path / ".venv"
    link.symlink_to(other)
    assert ".venv is a link: remove it" in refusal(environment, link)
    # As the command has it: the link is not followed.
    monkeypatch.setattr(sys, "argv", ["environment.py", "--venv", str(link), "link", "demo"])
    with pytest.raises(SystemExit, match=r"\.venv is a link"):
        environment.main()
    assert ((other / "kept").read_text(), link.is_symlink()) == ("kept", True)
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    assert ".venv is a link" in refusal(environment, link)
    assert not (tmp_path / "nowhere").exists()
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    assert "file is no folder" in refusal(environment, file)
    folder.mkdir()
    (folder / "kept").touch()
    assert "folder is a folder that" in refusal(environment, folder)
    assert names(folder) == ["kept"]


def test_the_environment_of_the_project_is_replaced(environment: ModuleType, tmp_path: Path) -> None:
    # That of earlier scripts.
    earlier = foreign(tmp_path / "earlier")
    (earlier / "installed-requirements.txt").touch()
    # That of an interrupted run: of no known state, but the project's.
    interrupted = tmp_path / "interrupted"
    run = environment.run

    def interrupt(*_command: object) -> None:
        raise KeyboardInterrupt

    environment.run = interrupt
    with pytest.raises(KeyboardInterrupt):
        environment.link("demo", interrupted, ROOT)
    environment.run = run
    assert environment.state_of(interrupted) is None
    empty = tmp_path / "empty"
    empty.mkdir()
    for venv in (earlier, interrupted, empty):
        environment.link("demo", venv, ROOT)
        assert environment.state_of(venv).environment == "demo"
        assert not (venv / "kept").exists()
        subprocess.run([venv / "bin/python", "-c", ""], check=True)


def test_locks_are_whole_and_name_no_place(scripts: dict[str, ModuleType]) -> None:
    layers = {layer.lock for layer in scripts["environment"].LAYERS.values()}
    assert {f"{name}.txt" for name in scripts["lock"].LOCKS} == layers - {"examples/demo/requirements-model.txt"}
    for lock in layers:
        text = (ROOT / lock).read_text()
        assert "://" not in text
        assert "index-url" not in text
        # Each requirement, joined to one line, has a version and hashes.
        lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.lstrip().startswith("#")]
        assert lines
        for line in lines:
            assert re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), f"{lock}: {line[:80]}"


def test_locks_have_what_their_lists_want(scripts: dict[str, ModuleType]) -> None:
    lock = scripts["lock"]

    def wanted(path: Path) -> set[str]:
        found = set()
        for line in path.read_text().splitlines():
            words = line.partition("#")[0].strip()
            if words.startswith("-r "):
                found |= wanted(path.parent / words[3:])
            elif words:
                found.add(re.split(r"[<>=~!; \[]", words)[0].lower().replace("_", "-"))
        return found

    for name in lock.LOCKS:
        lists = ROOT / lock.LISTS.get(name, f"{name}.in")
        pins = lock.pins((ROOT / f"{name}.txt").read_text())
        assert wanted(lists) <= pins.keys(), f"{lists}: run make lock"


def test_locks_that_differ_in_comments_are_the_same(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    environment = scripts["environment"]
    ours, other = ROOT / "scripts/packaging.txt", tmp_path / "scripts/packaging.txt"
    other.parent.mkdir()
    other.write_text("# another way\n" + ours.read_text())
    assert environment.pinned(other) == environment.pinned(ours)
    cached = environment.cache.cache_dir() / "python"

    def install(_layer: object, _lock: Path, folder: Path) -> None:
        (folder / "installed").touch()

    environment.install = install
    assert environment.made("packaging", tmp_path).parent == cached
    other.write_text(ours.read_text().replace("maturin==", "maturin==9"))
    # Layers of other locks are the clone's own: it can remove them while other clones run.
    assert environment.made("packaging", tmp_path).parent == tmp_path / "python"
    assert environment.made("model", tmp_path).parent == cached, "its lock is not there"


def test_no_script_removes_what_other_clones_use() -> None:
    for path in SCRIPTS.glob("*.sh"):
        removed = re.findall(r"\brm -[rf]+ .*", path.read_text())
        assert [line for line in removed if "XDG_CACHE" in line or "$cache" in line or ".cache" in line] == [], (
            path.name
        )


def test_what_moved_is_said(scripts: dict[str, ModuleType]) -> None:
    form = (
        "a=={}\n    --hash=sha256:0\nb==1 ; python_full_version < '3.10' \\\nb=={} ; python_full_version >= '3.10' \\\n"
    )
    old, new = form.format("1.0 \\", "2"), form.format("1.1 \\", "3")
    assert scripts["lock"].moves(old, new) == ["a 1.0 -> 1.1", "b 1, 2 -> 1, 3"]
    assert scripts["lock"].moves(old, old) == []
    assert scripts["lock"].moves("", "c==1 \\\n") == ["c none -> 1"]


def test_an_update_says_which_crates_moved(tmp_path: Path) -> None:
    cargo = tmp_path / "cargo"
    said = "    Updating crates.io index\n    Updating libc v0.2.1 -> v0.2.2\n      Adding new v1.0.0\n"
    cargo.write_text(f"#!/bin/sh\ncat <<'END' >&2\n{said}END\n")
    cargo.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "true"}
    update = [SCRIPTS / "update.sh"]
    done = subprocess.run(update, env=environment, check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("update:")]
    moved = ["Updating libc v0.2.1 -> v0.2.2", "Adding new v1.0.0"]
    assert lines == [f"update: {lock}: {line}" for lock in ("Cargo.lock", "fuzz/Cargo.lock") for line in moved]
    cargo.write_text("#!/bin/sh\necho 'no network' >&2\nexit 101\n")
    failed = subprocess.run(update, env=environment, check=False, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "no network" in failed.stderr


@pytest.mark.parametrize(
    "fails", ["debootstrap", "resolv.conf", " update", " install ", "dpkg-query", " clean", "nothing at all"]
)
@pytest.mark.parametrize("command", [["path", "bookworm"], ["run", "bookworm", "true"]])
def test_a_debian_is_made_whole_or_not_at_all(tmp_path: Path, fails: str, command: list[str]) -> None:
    # No network and no root: what the script starts says only whether it worked.
    programs = tmp_path / "programs"
    programs.mkdir()
    works = f'case "$(basename "$0") $*" in *"{fails}"*) exit 1 ;; esac\n'
    effects = {"id": "echo 0", "debootstrap": 'mkdir "$3/etc"', "cp": "", "unshare": ""}
    for name, effect in effects.items():
        (programs / name).write_text(f"#!/bin/sh\n{works if name != 'id' else ''}{effect}\n")
        (programs / name).chmod(0o755)
    cache = tmp_path / "cache"
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache)}
    environment.pop("DAXFS_DEBIAN_MIRROR", None)
    done = subprocess.run(
        [SCRIPTS / "debian.sh", *command], env=environment, check=False, capture_output=True, text=True
    )
    made = list((cache / "daxfs/debian").iterdir())
    if fails == "nothing at all":
        assert (done.returncode, [path.joinpath("packages").exists() for path in made]) == (0, [True]), done.stderr
    else:
        assert (done.returncode, made) == (2, [])
        assert "Debian bookworm could not be made" in done.stderr


def test_cargo_runs_locked_in_scripts() -> None:
    texts = [*SCRIPTS.glob("*.sh"), ROOT / "Makefile", *ROOT.joinpath("tests/kernel").glob("*.py")]
    builds = [
        (path.name, line.strip())
        for path in texts
        for line in path.read_text().splitlines()
        if re.search(r"\bcargo(?: |\", \")(build|test|clippy|doc|nextest run|run|install|check|rustc)( -|\",|$)", line)
        and not line.lstrip().startswith("#")
    ]
    assert len(builds) > 8
    assert [build for build in builds if "--locked" not in build[1]] == []


def test_programs_of_torch_find_no_gpu() -> None:
    torch = pytest.importorskip("torch")
    if "+cpu" in torch.__version__ or not Path(torch.__file__).parent.joinpath("lib/libcudart.so.13").exists():
        pytest.skip("another torch")
    code = "import torch; print(torch.cuda.is_available(), torch.zeros(2, dtype=torch.float8_e4m3fn).dtype)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False torch.float8_e4m3fn\n", "")
