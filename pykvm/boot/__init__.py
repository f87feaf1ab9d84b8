"""Image loaders: from a file to memory contents and the CPU state that starts them. Nothing here
runs anything.

`load_image` is the way in; it finds the format by looking. Placement rules are in
`pykvm.boot.layout`.
"""

from __future__ import annotations

from pykvm.boot.errors import ImageError
from pykvm.boot.image import LoadedImage, Mode, Segment
from pykvm.boot.load import load_image

__all__ = ["ImageError", "LoadedImage", "Mode", "Segment", "load_image"]
