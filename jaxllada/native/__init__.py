"""Kernels in C++ for CPUs, built where they are used; whoever has no compiler goes without."""
