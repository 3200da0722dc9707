"""CUDA schedule rules for integer tensor cores, and the device model they choose tiles by."""
