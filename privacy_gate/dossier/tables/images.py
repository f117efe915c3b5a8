"""Which images are decoded, and what decoding damaged or hostile ones may raise."""

import struct

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Image formats that are read. PIL knows more, and starts other programs for some of them."""

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
"""What PIL raises for damaged images, depending on their format."""
