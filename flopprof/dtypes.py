"""Names and sizes of element types, as traces spell them and as we do."""

# Trace spelling (kineto's scalar type names; FACTS of 2021 and ROCm files too) → (name, bytes).
_TRACE_DTYPES: dict[str, tuple[str, int]] = {
    "float": ("float32", 4),
    "double": ("float64", 8),
    "c10::Half": ("float16", 2),
    "c10::BFloat16": ("bfloat16", 2),
    "c10::Float8_e4m3fn": ("float8_e4m3fn", 1),
    "c10::Float8_e5m2": ("float8_e5m2", 1),
    "c10::Float8_e4m3fnuz": ("float8_e4m3fnuz", 1),
    "c10::Float8_e5m2fnuz": ("float8_e5m2fnuz", 1),
    "c10::Float8_e8m0fnu": ("float8_e8m0fnu", 1),
    "c10::Float4_e2m1fn_x2": ("float4_e2m1fn_x2", 1),
    "c10::complex<c10::Half>": ("complex32", 4),
    "c10::complex<float>": ("complex64", 8),
    "c10::complex<double>": ("complex128", 16),
    "long int": ("int64", 8),
    "long": ("int64", 8),
    "int": ("int32", 4),
    "short int": ("int16", 2),
    "short": ("int16", 2),
    "signed char": ("int8", 1),
    "char": ("int8", 1),
    "unsigned char": ("uint8", 1),
    "short unsigned int": ("uint16", 2),
    "unsigned short": ("uint16", 2),
    "unsigned int": ("uint32", 4),
    "long unsigned int": ("uint64", 8),
    "unsigned long": ("uint64", 8),
    "bool": ("bool", 1),
    "c10::qint8": ("qint8", 1),
    "c10::quint8": ("quint8", 1),
    "c10::qint32": ("qint32", 4),
    # 2021 schema
    "Float": ("float32", 4),
    "Double": ("float64", 8),
    "Half": ("float16", 2),
    "BFloat16": ("bfloat16", 2),
    "Long": ("int64", 8),
    "Int": ("int32", 4),
    "Short": ("int16", 2),
    "Char": ("int8", 1),
    "Byte": ("uint8", 1),
    "Bool": ("bool", 1),
}
_SIZES: dict[str, int] = dict(_TRACE_DTYPES.values())


def parse_dtype(spelling: str) -> str:
    """Return our name for a trace's type string ("c10::Half" → "float16"), or it unchanged.

    Strings that name no element type ("Scalar", "ScalarList", "TensorList", "") stay as they are.
    """
    known = _TRACE_DTYPES.get(spelling)
    return known[0] if known else spelling


def itemsize(dtype: str) -> int | None:
    """Return the bytes of one element of `dtype` (our name), or None if it is no element type."""
    return _SIZES.get(dtype)


def is_floating(dtype: str) -> bool:
    """Return whether arithmetic on `dtype` is floating point, real or complex."""
    return dtype.startswith(("float", "bfloat", "complex"))


def is_complex(dtype: str) -> bool:
    """Return whether `dtype` is complex."""
    return dtype.startswith("complex")
