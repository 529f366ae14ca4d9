"""Outside formats → `Entity` and `Mention` records. Never imports TensorFlow."""
