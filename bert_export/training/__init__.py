"""Training: the Estimator, its batches, its loss, and evaluation."""
