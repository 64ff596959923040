"""Who is told how training goes: the screen or the log, TensorBoard, Weights & Biases, the curves of a run."""
