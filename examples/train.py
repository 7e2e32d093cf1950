#!/usr/bin/env python3
"""A small training job: python3 train.py [--epochs N] [--out FILE]

A network of one hidden layer learns to tell two spirals apart, by plain gradient descent in shuffled batches. It says the loss
of each epoch, and at the end writes every weight, bit by bit (as hex floats), to FILE. It saves nothing on the way: that is what

    launcher --every 5s --keep 3 --on-term checkpoint --resume --name spirals -- python3 examples/train.py

is for. Kill it as often as you like, and run the same line again: FILE is the same, to the last bit, as that of a run without an
interruption. With --checkpoint-every EPOCHS it says itself when (instead of --every). Standard library only.
"""
import argparse
import math
import os
import random
import sys

arguments = argparse.ArgumentParser(usage=__doc__)
arguments.add_argument("--epochs", type=int, default=300)
arguments.add_argument("--out", default="spirals.weights")
arguments.add_argument("--checkpoint-every", type=int, metavar="EPOCHS")
ARGS = arguments.parse_args()
if ARGS.checkpoint_every:
    sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../dormouse/python"))
    import dormouse  # without launcher its calls do nothing

HIDDEN, BATCH, RATE = 16, 20, 0.3
chance = random.Random(2026)  # one sequence for everything: its state is in memory, as all the rest is


def spirals(points):
    """Points on two spirals, and which spiral each is on."""
    for i in range(points):
        which, t = i % 2, 0.5 + 3.0 * (i // 2) / (points // 2)
        angle = t * 2.0 + math.pi * which
        yield (t * math.cos(angle) / 3.5 + chance.gauss(0, 0.01), t * math.sin(angle) / 3.5 + chance.gauss(0, 0.01)), which


class Network:
    def __init__(self):
        self.first = [[chance.gauss(0, 1) for _ in range(3)] for _ in range(HIDDEN)]  # weights of x and y, bias
        self.second = [chance.gauss(0, 1) / HIDDEN for _ in range(HIDDEN + 1)]

    def forward(self, x, y):
        hidden = [math.tanh(a * x + b * y + c) for a, b, c in self.first]
        return hidden, 1 / (1 + math.exp(-sum(map(float.__mul__, self.second, hidden)) - self.second[-1]))

    def learn(self, batch):
        """One step downhill; the loss before it."""
        loss = 0.0
        first = [[0.0] * 3 for _ in range(HIDDEN)]
        second = [0.0] * (HIDDEN + 1)
        for (x, y), which in batch:
            hidden, guess = self.forward(x, y)
            loss -= math.log(max(guess if which else 1 - guess, 1e-12))
            error = guess - which
            second[-1] += error
            for i, h in enumerate(hidden):
                second[i] += error * h
                back = error * self.second[i] * (1 - h * h)
                first[i][0] += back * x
                first[i][1] += back * y
                first[i][2] += back
        rate = RATE / len(batch)
        self.second = [w - rate * g for w, g in zip(self.second, second)]
        self.first = [[w - rate * g for w, g in zip(ws, gs)] for ws, gs in zip(self.first, first)]
        return loss / len(batch)


def main():
    data = list(spirals(200))
    network = Network()
    for epoch in range(1, ARGS.epochs + 1):
        chance.shuffle(data)
        batches = [data[i : i + BATCH] for i in range(0, len(data), BATCH)]
        loss = sum(network.learn(batch) for batch in batches) / len(batches)
        print(f"epoch {epoch}: loss {loss:.6f}", flush=True)
        if ARGS.checkpoint_every and epoch % ARGS.checkpoint_every == 0:
            try:
                if dormouse.checkpoint() == "restored":
                    print(f"restored for the {dormouse.generation()}. time", flush=True)
            except dormouse.Error as why:  # the work goes on, and the last checkpoint stands
                print(f"no checkpoint: {why}", file=sys.stderr, flush=True)
    weights = [w for ws in network.first for w in ws] + network.second
    with open(ARGS.out + ".new", "w") as f:
        f.write("".join(w.hex() + "\n" for w in weights))
    os.rename(ARGS.out + ".new", ARGS.out)


main()
