"""`python guests/build.py`: what it builds, what it leaves alone, what it says when it cannot."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from pykvm import images

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUESTS = ROOT / "guests"


def build(
    tree: pathlib.Path, *options: str, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, str(tree / "guests" / "build.py"), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkout of its own with three guests: flat, ELF without and ELF with the C runtime."""
    for name in ("build.py", "elfinfo.py"):
        (tmp_path / "guests").mkdir(exist_ok=True)
        shutil.copy(GUESTS / name, tmp_path / "guests" / name)
    for folder in ("lib", "halt", "hello64", "selfmod"):
        shutil.copytree(GUESTS / folder, tmp_path / "guests" / folder)
    return tmp_path


def stamps(tree: pathlib.Path) -> dict[str, int]:
    folder = tree / "pykvm" / "images"
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_every_folder_with_a_manifest_file_is_built() -> None:
    assert images.names() == sorted(path.parent.name for path in GUESTS.glob("*/guest.toml"))
    assert {
        p.name
        for p in GUESTS.iterdir()
        # not guests: shared code, real kernels, and programs that are run without a kernel
        if p.is_dir() and p.name not in ("lib", "linux", "fuzz-parser", "__pycache__")
    } == {*images.names()}
    for name in images.names():
        assert os.path.getsize(images.find(name).path) > 0


def test_the_guests_that_were_promised_exist() -> None:
    promised = (
        "hello16 bootsect16 hello32 hello64 hello-multiboot modes exceptions interrupts io cpuid "
        "selfmod smp memory compute compute2 pio-loop mmio-loop triplefault spin echo halt idle "
        "selftest"
    )
    assert set(promised.split()) <= set(images.names())


def test_the_output_is_reproducible(tmp_path: pathlib.Path) -> None:
    done = build(
        ROOT, "--output", str(tmp_path / "out"), "--work", str(tmp_path / "elsewhere/work")
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the compiler warns"
    for path in (tmp_path / "out").iterdir():
        shipped = pathlib.Path(images.DIRECTORY, path.name)
        assert path.read_bytes() == shipped.read_bytes(), f"{path.name} differs from the one built"
        assert str(ROOT).encode() not in path.read_bytes()


def test_only_what_changed_is_built_again(tree: pathlib.Path) -> None:
    assert build(tree).stdout == "guests: 3 built\n"
    before = stamps(tree)
    assert build(tree).stdout == "guests: up to date\n"
    assert stamps(tree) == before

    source = tree / "guests" / "halt" / "halt.S"
    source.write_text(source.read_text().replace("cli", "nop\n        cli"))
    assert build(tree).stdout == "guests: 1 built\n"
    changed = {name for name, when in stamps(tree).items() if before[name] != when}
    assert changed == {"halt.bin", "manifest.json"} or changed == {"halt.bin"}

    (tree / "pykvm" / "images" / "hello64.elf").unlink()
    assert build(tree).stdout == "guests: 1 built\n"
    assert build(tree, "--force").stdout == "guests: 3 built\n"

    shutil.rmtree(tree / "guests" / "halt")
    assert build(tree).returncode == 0
    assert not (tree / "pykvm" / "images" / "halt.bin").exists()
    assert images.names(str(tree / "pykvm" / "images")) == ["hello64", "selfmod"]


@pytest.mark.parametrize(
    ("missing", "package"), [("as", "binutils"), ("ld", "binutils"), ("gcc", "gcc")]
)
def test_a_missing_tool_is_named_with_its_package(
    tree: pathlib.Path, tmp_path: pathlib.Path, missing: str, package: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in {"as", "ld", "objcopy", "gcc"} - {missing}:
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    done = build(tree, path=str(tools))
    assert done.returncode == 1
    assert done.stderr == (
        f"guests/build.py: `{missing}` is not installed; the guests are built with it: "
        f"apt-get install {package}\n"
    )


def test_an_error_in_a_source_is_shown_and_leaves_the_old_image(tree: pathlib.Path) -> None:
    build(tree)
    image = tree / "pykvm" / "images" / "halt.bin"
    old = image.read_bytes()
    (tree / "guests" / "halt" / "halt.S").write_text("    no_such_instruction\n")
    done = build(tree)
    assert done.returncode == 1
    assert "as failed on halt/halt.S" in done.stderr
    assert "no such instruction" in done.stderr
    assert image.read_bytes() == old


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("colour = 1", "unexpected keyword argument 'colour'"),
        ("[params]\nspeed = 'fast'", "`speed` is no global symbol with a size"),
        ("load = ", "Invalid value"),
        ("format = 'tar'", "Cannot overwrite a value"),
    ],
)
def test_a_bad_guest_toml_is_refused(tree: pathlib.Path, line: str, said: str) -> None:
    toml = tree / "guests" / "halt" / "guest.toml"
    toml.write_text(toml.read_text().replace("[expect]", f"{line}\n[expect]"))
    done = build(tree)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_flat_and_load_belong_together(tree: pathlib.Path) -> None:
    toml = tree / "guests" / "halt" / "guest.toml"
    toml.write_text(toml.read_text().replace("load = 0x1000\n", ""))
    assert "`load` belongs to flat images" in build(tree).stderr


def test_the_manifest_is_plain_and_complete() -> None:
    with open(os.path.join(images.DIRECTORY, "manifest.json")) as file:
        manifest = json.load(file)
    for name, entry in manifest.items():
        assert entry["format"] in ("flat", "elf", "multiboot"), name
        assert entry["mode"] in ("real", "protected", "long"), name
        assert entry["irqchip"] == "kernel" or entry["cpus"] == 1, f"{name}: SIPI needs a LAPIC"
        assert entry["description"], name
        assert set(entry["expect"]) <= {"exit_code", "serial", "matches", "input", "timeout"}, name
        assert {"serial", "matches"} & set(entry["expect"]), f"{name} checks no output"


def test_the_readme_lists_every_guest() -> None:
    text = (GUESTS / "README.md").read_text()
    rows = "".join(line for line in text.splitlines(keepends=True) if line.startswith("| `"))
    assert [name for name in images.names() if f"`{name}`" not in rows] == []


def test_the_fixed_addresses_of_the_loop_guests() -> None:
    """guests/README.md promises them to VMMs written in C."""
    pio, mmio = images.find("pio-loop").params, images.find("mmio-loop").params
    assert {n: (a.address, a.size) for n, a in pio.items()} == {
        "count": (0x1004, 4),
        "port": (0x1008, 2),
        "direction": (0x100A, 2),
    }
    assert {n: (a.address, a.size) for n, a in mmio.items()} == {
        "count": (0x1004, 4),
        "address": (0x1008, 4),
        "direction": (0x100C, 4),
    }
