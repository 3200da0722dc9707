"""Parts of the examples with CIFAR-10: its loader."""
