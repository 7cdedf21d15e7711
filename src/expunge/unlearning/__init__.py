"""The unlearning algorithms: pure PyTorch. Never speaks HTTP, SQL or to an object store."""
