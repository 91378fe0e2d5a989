"""Random numbers that nobody else can predict: noise and sampling must not follow the run's seed.

Whoever knows the noise subtracts it. So a client's numbers come from its operating system: as the
seed of a generator of PyTorch's (`PrivateRandom`), or every single one of them (`SecureRandom`).
"""

import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Randomness(Protocol):
    """What DP-SGD draws."""

    def normal(self, like: Tensor) -> Tensor:
        """Independent standard normals of a tensor's shape, dtype and device."""
        ...

    def uniform(self, count: int) -> Tensor:
        """`count` independent float64 numbers, uniform on [0, 1), on the CPU."""
        ...


class PrivateRandom:
    """PyTorch's generators, seeded by the operating system; `seed` is for tests alone."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def normal(self, like: Tensor) -> Tensor:
        """See Randomness."""
        generator = self._generator(like.device)
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

    def uniform(self, count: int) -> Tensor:
        """See Randomness."""
        generator = self._generator(torch.device("cpu"))
        return torch.rand(count, dtype=torch.float64, generator=generator)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            fresh = int.from_bytes(os.urandom(7), "big")
            seed = fresh if self.seed is None else self.seed
            self.generators[device] = torch.Generator(device).manual_seed(seed)
        return self.generators[device]


class SecureRandom:
    """Every number from the operating system's cryptographic generator.

    A normal is the sum of four, halved, so that the gaps between floating-point numbers do not
    tell which one was drawn (Holohan and Braghin, arXiv:2107.10138).
    """

    def normal(self, like: Tensor) -> Tensor:
        """See Randomness."""
        radius = np.sqrt(-2 * np.log1p(-self._uniform(4 * like.numel())))
        angle = 2 * np.pi * self._uniform(4 * like.numel())
        normals = (radius * np.cos(angle)).reshape(4, -1).sum(0) / 2
        return torch.from_numpy(normals).reshape(like.shape).to(like)

    def uniform(self, count: int) -> Tensor:
        """See Randomness."""
        return torch.from_numpy(self._uniform(count))

    @staticmethod
    def _uniform(count: int) -> np.ndarray:
        bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> 11
        return bits * 2.0**-53
