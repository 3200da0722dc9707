"""What importers of float graphs share: values, names, the Relax function, operator families."""
