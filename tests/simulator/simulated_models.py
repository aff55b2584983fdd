"""Small models for the simulator."""

import torch


class Classifier(torch.nn.Module):
    """Three layers with dropout between them, and a loss."""

    def __init__(self, dropout=0.1, norm=False):
        super().__init__()
        self.first = torch.nn.Linear(6, 8)
        self.norm = torch.nn.BatchNorm1d(8) if norm else torch.nn.Identity()
        self.dropout = torch.nn.Dropout(dropout)
        self.second = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x, labels=None):
        x = self.dropout(torch.relu(self.norm(self.first(x))))
        logits = self.head(torch.tanh(self.second(x)))
        if labels is None:
            return logits
        return logits, torch.nn.functional.cross_entropy(logits, labels)


def batch(num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_samples, 6, generator=generator), torch.randint(0, 3, (num_samples,), generator=generator)


def new_model(**settings):
    torch.manual_seed(7)
    return Classifier(**settings)
