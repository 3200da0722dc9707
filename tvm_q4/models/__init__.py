"""Float network definitions that are not in torchvision (they need the `torch` extra)."""
