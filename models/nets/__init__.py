"""Well-known CNN architectures in plain torch.nn, one family per file. Importing a family needs PyTorch."""
