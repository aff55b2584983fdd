"""IPUTrainer: a small subclass of transformers.Trainer."""
