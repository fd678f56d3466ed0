"""Triton kernels, installed as pamkd.kernels."""

if __name__ != "pamkd.kernels":
    raise ImportError(f"this folder is the package pamkd.kernels, not {__name__!r}: import pamkd.kernels")
