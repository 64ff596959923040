"""Distributed training: the entry point and the DeepSpeed engine."""
