"""The calls that the package is used through, and what they share."""
