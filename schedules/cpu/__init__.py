"""CPU schedule rules and dot-product intrinsics."""
