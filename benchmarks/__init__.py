"""Benchmarks of pykvm against raw C programs and QEMU, measured in the same run.

`python benchmarks/run.py --help`.
"""
