"""Our decoder beside transformers' torch models, on tiny random checkpoints."""
