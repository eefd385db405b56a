"""Which group acts on each class of units: a second abstract pass over the model's operators."""
