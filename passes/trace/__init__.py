"""A model as a graph, by torch.fx or torch.export."""
