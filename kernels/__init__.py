"""Triton kernels, installed as pamkd.kernels.

A file holds the kernels of one operation and its launchers, which take and return tensors. Launchers never read a tensor on the
host: they can be captured in a CUDA graph. Results are the same bits in every run: floating-point sums have one order, atomics
are for counting.
"""

if __name__ != "pamkd.kernels":
    raise ImportError(f"this folder is the package pamkd.kernels, not {__name__!r}: import pamkd.kernels")
