"""Symmetries for people: listings and pictures."""
