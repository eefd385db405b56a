"""The experiments that this project began with, repeated and checked.

python -m benchmarks.experiments NAME [--quick] [--data-dir DIR] [--seeds N] [--output DIR]
"""
