"""Frontends: from a model file to a Relax module; see `load_model`."""
