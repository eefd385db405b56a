"""Models as users name them, their example inputs, and checks before any work."""
