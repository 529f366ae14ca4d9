"""BERT encoder, linker head, weight import and optimizer."""
