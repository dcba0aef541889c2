"""The Python side of the compiled and Triton kernels. Nothing here checks arguments; `ops` does."""
