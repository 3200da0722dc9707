"""Parts of `train_resnet20.py`: CIFAR-10 loader, augmentation, and the training loop."""
