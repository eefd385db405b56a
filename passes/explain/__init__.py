"""What was found, as graphs that say why."""
