"""Ready-made IPUConfigs as JSON files; read through ipu_trainer.config.profiles."""
