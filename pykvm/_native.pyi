"""The C layer (native/), untyped: cffi makes its members from native/cdef/*.h."""

from typing import Any

ffi: Any
lib: Any
