"""Image formats that are decoded, and the exceptions that damaged or hostile images may raise."""

import struct

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Formats that PIL may decode. PIL supports more, but starts external programs for some (Ghostscript for EPS)."""

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    MemoryError,
)
"""Exceptions that PIL raises for damaged images, depending on the format."""
