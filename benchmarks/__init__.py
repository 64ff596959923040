"""Throughput against peers: each benchmark is a module to run, its results are JSON files under results/."""
