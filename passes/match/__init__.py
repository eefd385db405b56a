"""The third stage: permutations that bring one model close to another, one file per method."""
