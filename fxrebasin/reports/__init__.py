"""The findings, for people: tables of a transformation and of an equivalence check."""
