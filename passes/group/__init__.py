"""The second stage: from recorded constraints to permutation classes on state tensors."""
