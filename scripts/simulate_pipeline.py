"""A program as one writes it for a Pod: a small transformer, cut over four IPUs, trained to count.

It imports poptorch. On a Pod run it as it is; on a laptop:

    ipu-trainer simulate --trace trace scripts/simulate_pipeline.py --steps 20

then open trace/training-1/timeline.svg and memory.txt.
"""

import argparse

import poptorch
import torch

NUM_IPUS, LAYERS_PER_IPU, WIDTH, SEQUENCE_LENGTH, VOCABULARY = 4, 2, 64, 32, 100


class Counter(torch.nn.Module):
    """Learns to say the next number after each."""

    def __init__(self):
        super().__init__()
        self.tokens = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.positions = torch.nn.Embedding(SEQUENCE_LENGTH, WIDTH)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
            for _ in range(NUM_IPUS * LAYERS_PER_IPU)
        )
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)
        poptorch.BeginBlock(self.tokens, "embedding", ipu_id=0)
        for index, layer in enumerate(self.layers):
            poptorch.BeginBlock(layer, f"layer {index}", ipu_id=index // LAYERS_PER_IPU)
        poptorch.BeginBlock(self.head, "head", ipu_id=NUM_IPUS - 1)

    def forward(self, tokens, labels):
        hidden = self.tokens(tokens) + self.positions.weight
        for layer in self.layers:
            hidden = poptorch.recomputationCheckpoint(layer(hidden))
        logits = self.head(hidden)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


class Sequences(torch.utils.data.Dataset):
    """Random numbers and their successors; a pure function of the index."""

    def __len__(self):
        return 4096

    def __getitem__(self, index):
        tokens = torch.randint(0, VOCABULARY, (SEQUENCE_LENGTH,), generator=torch.Generator().manual_seed(index))
        return tokens, (tokens + 1) % VOCABULARY


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="weight updates")
    parser.add_argument("--micro_batch", type=int, default=4, help="sequences in one forward of one replica")
    parser.add_argument("--accumulation", type=int, default=8, help="micro-batches an update; at least 7 for four IPUs")
    arguments = parser.parse_args()

    options = poptorch.Options().randomSeed(0)
    options.Training.gradientAccumulation(arguments.accumulation)
    torch.manual_seed(0)
    model = Counter()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=2e-3)
    training = poptorch.trainingModel(model.train(), options, optimizer)
    loader = poptorch.DataLoader(options, Sequences(), arguments.micro_batch, shuffle=True)
    for step, (tokens, labels) in zip(range(arguments.steps), loader):
        loss = training(tokens, labels)
        print(f"step {step:3d}  loss {float(loss):.3f}")
    training.destroy()


if __name__ == "__main__":
    main()
