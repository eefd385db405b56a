"""The findings as graphs, which say why."""
