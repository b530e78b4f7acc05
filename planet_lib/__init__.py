"""World-model components for PyTorch, and the complete PlaNet agent."""

__version__ = "0.1.0.dev0"
