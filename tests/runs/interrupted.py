"""A run that is told to stop in the middle of a step."""

import os


class InterruptedAt:
    """An augmentation that sends a signal to the process at its n-th call."""

    def __init__(self, call: int, number: int) -> None:
        self.call, self.number, self.calls = call, number, 0

    def __call__(self, images, generator):
        self.calls += 1
        if self.calls == self.call:
            os.kill(os.getpid(), self.number)
        return images
