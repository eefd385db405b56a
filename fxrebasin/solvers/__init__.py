"""Solvers for the assignment problems that matching poses."""
