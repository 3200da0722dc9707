"""A GPU for tests: TVM's own CUDA runtime over a driver whose launches go to the emulator."""
