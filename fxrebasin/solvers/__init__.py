"""Solvers for the matching problems that permutation classes pose."""
