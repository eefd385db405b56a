"""Running a user's model without leaving a trace, and what it returns."""
