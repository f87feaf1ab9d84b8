"""Everything that the Linux boot tests and benchmarks start from: `python guests/linux/assets.py`
makes or downloads what the cache lacks and writes `assets.json` there; `load()` reads it.

Loading needs no network and no apt, so tests do it anywhere, inside the nested tier too.
"""

from __future__ import annotations

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from linux import initramfs, kernel, packages
from linux.modules import ModuleTree
from linux.packages import BuildError

STOCK = "cloud-amd64"
Assets = dict[str, pathlib.Path]


def build() -> Assets:
    """What there is, by name: `mmio`, `pc` (folders of our kernels), `stock` (Debian's bzImage),
    `initramfs32`, `initramfs64` (the latter with the stock kernel's modules)."""
    found = {variant: kernel.build(variant) for variant in kernel.VARIANTS}
    found["stock"] = initramfs.kernel_image(STOCK)
    folder = packages.cache() / "initramfs"
    folder.mkdir(exist_ok=True)
    modules = ModuleTree(initramfs.kernel_tree(STOCK)).in_order(initramfs.MODULES)
    for bits, data in ((32, initramfs.base(32)), (64, initramfs.base(64, modules))):
        path = found[f"initramfs{bits}"] = folder / f"base{bits}.cpio"
        if not path.exists() or path.read_bytes() != data:
            part = path.with_suffix(".part")
            part.write_bytes(data)
            part.rename(path)
    index = packages.cache() / "assets.json"
    part = index.with_suffix(".part")
    part.write_text(json.dumps({name: str(path) for name, path in found.items()}, indent=1))
    part.rename(index)
    return found


def load() -> Assets:
    """What `build` made last. BuildError if it has not, or the cache was emptied since."""
    index = packages.cache() / "assets.json"
    try:
        found = {name: pathlib.Path(path) for name, path in json.loads(index.read_text()).items()}
    except FileNotFoundError:
        found = {}
    if not found or not all(path.exists() for path in found.values()):
        raise BuildError("the Linux guests are not built; run:  make linux")
    return found


def main() -> int:
    try:
        for name, path in build().items():
            print(f"{name:12} {path}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
