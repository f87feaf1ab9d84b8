"""Builds the guest images: `python guests/build.py` assembles every folder here that has a
`guest.toml` and writes the images and `manifest.json` into `pykvm/images/`.

Needs Python and the Debian packages binutils and gcc (no C library, no multilib). A guest whose
inputs have not changed is left alone. The output depends on the inputs and the tools alone: no
time stamps, no build id, no absolute paths.

guest.toml:
    description   one line for `pykvm guests`
    format        "flat" | "elf" | "multiboot"
    mode          "real" | "protected" | "long": the CPU's mode at the entry
    sources       files, relative to the folder; .S goes to as, .c to gcc
    load          flat only: guest-physical load address; the first byte is the entry
    bits          64 (default) or 32: object format
    runtime       true: link the C runtime in lib/ as well (64-bit ELF)
    cpus          vCPUs it wants (default 1)
    irqchip       "kernel" if it needs the in-kernel PIC, IOAPIC, LAPIC and PIT, else "none"
    [params]      symbol = "what it means": words or buffers the host may set before the start
    [results]     symbol = "what it means": where the host finds what the guest computed
    [expect]      exit_code; serial (whole output) or matches (list of regular expressions);
                  timeout in seconds and serial input where they are needed to get there
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from typing import Any

from elfinfo import ElfInfo, read_elf

HERE = pathlib.Path(__file__).resolve().parent
OUTPUT = HERE.parent / "pykvm" / "images"
WORK = HERE.parent / "build" / "guests"

PACKAGES = {"as": "binutils", "ld": "binutils", "objcopy": "binutils", "gcc": "gcc"}
FORMATS = ("flat", "elf", "multiboot")
MODES = ("real", "protected", "long")

# Ring-0 code must stay within what every KVM host can run, so no FPU or vector registers; there
# is no red zone below a kernel's stack pointer; addresses are fixed, so nothing is relocatable.
CFLAGS = [
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-ffreestanding", "-fno-pic", "-masm=intel"),
    *("-mgeneral-regs-only", "-mno-red-zone", "-fno-stack-protector", "-fcf-protection=none"),
    *("-fno-asynchronous-unwind-tables", "-fno-tree-loop-distribute-patterns"),
    *("-ffunction-sections", "-fdata-sections", "-fno-strict-aliasing", "-Ilib"),
]
LDFLAGS = ["-static", "--build-id=none", "-z", "max-page-size=4096", "-z", "noexecstack"]
OBJECT = {64: (["--64"], ["-m64"]), 32: (["--32"], ["-m32"])}


class BuildError(Exception):
    """One sentence for the person at the terminal."""


@dataclass
class Guest:
    """One guest.toml."""

    name: str
    folder: pathlib.Path
    description: str
    format: str
    mode: str
    sources: list[str]
    load: int | None = None
    bits: int = 64
    runtime: bool = False
    cpus: int = 1
    irqchip: str = "none"
    params: dict[str, str] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    expect: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: pathlib.Path) -> Guest:
        try:
            guest = cls(path.parent.name, path.parent, **tomllib.loads(path.read_text()))
        except (TypeError, tomllib.TOMLDecodeError) as error:
            raise BuildError(f"{path}: {error}") from error
        if guest.format not in FORMATS or guest.mode not in MODES:
            raise BuildError(f"{path}: format must be one of {FORMATS}, mode one of {MODES}")
        if (guest.format == "flat") != (guest.load is not None):
            raise BuildError(f"{path}: `load` belongs to flat images, and only to them")
        return guest

    @property
    def file(self) -> str:
        return self.name + (".bin" if self.format == "flat" else ".elf")

    def all_sources(self) -> list[pathlib.Path]:
        found = [(self.folder / source).resolve() for source in self.sources]
        if self.runtime:
            # start.S first: it holds the entry, and the linker script keeps this order.
            runtime = sorted((HERE / "lib").glob("*.[cS]"), key=lambda p: (p.name != "start.S", p))
            found = [path for path in runtime if path not in found] + found
        return found


class Toolchain:
    """Runs as, gcc, ld and objcopy; looks for them when the first one is needed."""

    def __init__(self, work: pathlib.Path, verbose: bool) -> None:
        self.work = work
        self.verbose = verbose
        self.objects: dict[tuple[pathlib.Path, int], pathlib.Path] = {}

    @staticmethod
    def fingerprint() -> str:
        """Changes when a tool is replaced; costs no process."""
        parts = []
        for tool in PACKAGES:
            path = shutil.which(tool)
            if path:
                stat = os.stat(path)
                parts.append(f"{tool}:{os.path.realpath(path)}:{stat.st_size}:{stat.st_mtime_ns}")
        return "\n".join(parts)

    def run(self, tool: str, *arguments: str | os.PathLike[str]) -> None:
        path = shutil.which(tool)
        if path is None:
            raise BuildError(
                f"`{tool}` is not installed; the guests are built with it: "
                f"apt-get install {PACKAGES[tool]}"
            )
        command = [path, *(os.fspath(argument) for argument in arguments)]
        if self.verbose:
            print(" ".join([tool, *command[1:]]))
        # Relative file names: __FILE__ and the symbol table must not depend on the checkout.
        environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
        done = subprocess.run(
            command, cwd=HERE, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildError(f"{tool} failed on {command[-1]}:\n{done.stderr.strip()}")
        if done.stderr:
            print(done.stderr.strip(), file=sys.stderr)

    def compile(self, source: pathlib.Path, bits: int) -> pathlib.Path:
        key = (source, bits)
        if key not in self.objects:
            relative = source.relative_to(HERE)
            target = self.work / "objects" / str(bits) / relative.with_name(relative.name + ".o")
            target.parent.mkdir(parents=True, exist_ok=True)
            for_as, for_gcc = OBJECT[bits]
            if source.suffix == ".S":
                include = f"-I{relative.parent}"
                self.run("as", *for_as, include, "-Ilib", "-o", target, relative)
            else:
                self.run("gcc", *for_gcc, *CFLAGS, "-c", "-o", target, relative)
            self.objects[key] = target
        return self.objects[key]

    def link(self, guest: Guest) -> pathlib.Path:
        objects = [self.compile(source, guest.bits) for source in guest.all_sources()]
        linked = self.work / f"{guest.name}.linked"
        if guest.format == "flat":
            options = ["-T", "lib/flat.ld", f"--defsym=LOAD={guest.load}"]
        else:
            options = ["-T", f"lib/elf{guest.bits}.ld"]
        if guest.runtime:
            options.append("--gc-sections")
            options += [f"--undefined={name}" for name in [*guest.params, *guest.results]]
        machine = "elf_x86_64" if guest.bits == 64 else "elf_i386"
        self.run("ld", "-m", machine, *LDFLAGS, *options, "-o", linked, *objects)
        return linked


def fingerprint(guest: Guest, tools: str) -> str:
    """A hash of everything that the guest's image depends on."""
    digest = hashlib.sha256(tools.encode())
    files = {*guest.folder.iterdir(), *(HERE / "lib").iterdir(), *guest.all_sources()}
    files |= {HERE / "build.py", HERE / "elfinfo.py"}
    for path in sorted(files):
        if path.is_file():
            digest.update(f"\n{path.relative_to(HERE)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def describe(guest: Guest, info: ElfInfo) -> dict[str, Any]:
    """The guest's entry in manifest.json."""
    entry: dict[str, Any] = {
        "file": guest.file,
        "format": guest.format,
        "mode": guest.mode,
        "load": info.load,
        "entry": info.entry,
        "cpus": guest.cpus,
        "irqchip": guest.irqchip,
        "description": guest.description,
        "expect": guest.expect,
    }
    for kind, wanted in (("params", guest.params), ("results", guest.results)):
        found: dict[str, Any] = {}
        for name, meaning in wanted.items():
            symbol = info.symbols.get(name)
            if symbol is None or symbol.size == 0:
                raise BuildError(f"{guest.name}: [{kind}] `{name}` is no global symbol with a size")
            found[name] = {
                "address": symbol.address,
                "size": symbol.size,
                "description": meaning,
            }
            if symbol.size <= 8:
                found[name]["default"] = info.initial_value(symbol)
        if found:
            entry[kind] = found
    if guest.format == "flat":  # an ELF file carries its own
        entry["symbols"] = {name: info.symbols[name].address for name in sorted(info.symbols)}
        entry["symbols"].pop("LOAD", None)
    prefix = "guest_case_"
    cases = [(s.address, name) for name, s in info.symbols.items() if name.startswith(prefix)]
    if cases:
        entry["cases"] = [name.removeprefix(prefix) for _, name in sorted(cases)]
    return entry


def replace(path: pathlib.Path, data: bytes) -> None:
    """Write a file so that nobody sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)


def build(output: pathlib.Path, work: pathlib.Path, *, force: bool, verbose: bool) -> list[str]:
    """Bring `output` up to date; returns the names of the guests that were built."""
    output.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    with open(work / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamps_file = work / "stamps.json"
        known = json.loads(stamps_file.read_text()) if stamps_file.exists() and not force else {}
        tools = Toolchain.fingerprint()
        chain = Toolchain(work, verbose)
        built, stamps, manifest = [], {}, {}
        for path in sorted(HERE.glob("*/guest.toml")):
            guest = Guest.read(path)
            target = output / guest.file
            stamp = fingerprint(guest, tools)
            old = known.get(guest.name, {})
            if old.get("stamp") == stamp and old.get("output") == str(target) and target.exists():
                entry = old["entry"]
            else:
                linked = chain.link(guest)
                entry = describe(guest, read_elf(linked.read_bytes()))
                if guest.format == "flat":
                    image = work / guest.file
                    chain.run("objcopy", "-O", "binary", linked, image)
                else:
                    image = linked
                replace(target, image.read_bytes())
                built.append(guest.name)
            stamps[guest.name] = {"stamp": stamp, "output": str(target), "entry": entry}
            manifest[guest.name] = entry
        text = json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"
        manifest_file = output / "manifest.json"
        if not manifest_file.exists() or manifest_file.read_bytes() != text:
            replace(manifest_file, text)
        # The same as a module: its byte code loads ten times as fast as JSON is parsed.
        module = f'"""Made by guests/build.py."""\n\nGUESTS = {manifest!r}\n'.encode()
        module_file = output / "manifest.py"
        if not module_file.exists() or module_file.read_bytes() != module:
            replace(module_file, module)
        wanted = {entry["file"] for entry in manifest.values()}
        for path in output.iterdir():  # images of guests that are gone
            if path.suffix in (".elf", ".bin") and path.name not in wanted:
                path.unlink()
        replace(stamps_file, json.dumps(stamps).encode())
    return built


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the guest images into pykvm/images/.")
    parser.add_argument("--force", action="store_true", help="build also what is up to date")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each command")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="where images go")
    parser.add_argument("--work", type=pathlib.Path, default=WORK, help="where object files go")
    options = parser.parse_args(arguments)
    try:
        built = build(
            options.output.resolve(),
            options.work.resolve(),
            force=options.force,
            verbose=options.verbose,
        )
    except BuildError as error:
        print(f"guests/build.py: {error}", file=sys.stderr)
        return 1
    print(f"guests: {len(built)} built" if built else "guests: up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
