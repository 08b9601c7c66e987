"""Torch hooks: what runs inside the training process and writes its ring."""
