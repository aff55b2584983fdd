"""Text to text with encoder-decoders (T5, BART), on pairs of fixed shape."""
