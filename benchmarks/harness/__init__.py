"""The measuring half of the benchmarks.

Builds the peers, interleaves rounds, computes spreads, writes the report.
"""
