"""The stages, one folder each, from a model to its symmetry, a permutation and a permuted model."""
