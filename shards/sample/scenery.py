"""The canvas of a natural-like picture and what lies behind its objects: sky and foliage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.sample.paint import Field, edge, ellipse, fractal, hue


@dataclass(frozen=True, slots=True)
class Scene:
    """The canvas of one picture: pixel coordinates in units of its shorter side, from its centre."""

    rng: np.random.Generator
    x: Field
    y: Field

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.x.shape[1], self.x.shape[0]

    @property
    def reach(self) -> tuple[float, float]:
        """Half the width and half the height."""
        return float(self.x[0, -1]), float(self.y[-1, 0])

    def fractal(self, cells: float, octaves: int = 4) -> Field:
        """Fractal noise over the canvas."""
        return fractal(self.rng, *self.size, cells, octaves)


def mix(under: Field, over: Field, share: Field) -> Field:
    """Lay a colour or picture over another; `share` [H, W] in [0, 1]."""
    return np.asarray(under + (over - under) * share[..., None], np.float32)


def foliage(scene: Scene) -> Field:
    """Out-of-focus leaves, grass or soil: two tints mixed by noise, with bright discs at times."""
    rng = scene.rng
    tint = rng.uniform(0.05, 0.42)
    dark = hue(tint, rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.4))
    light = hue(tint + rng.normal(0, 0.05), rng.uniform(0.2, 0.7), rng.uniform(0.4, 0.85))
    picture = mix(
        dark + np.zeros((*scene.x.shape, 3), np.float32), light, edge(scene.fractal(rng.uniform(3, 9), 3), 3.4)
    )
    for _ in range(int(rng.integers(0, 7))):
        spot = (rng.uniform(-1, 1) * scene.reach[0], rng.uniform(-1, 1) * scene.reach[1])
        size = rng.uniform(0.03, 0.11)
        picture = mix(picture, light * 1.3, 0.3 * ellipse(scene.x, scene.y, spot, (size, size), 0, 0.03))
    return picture


def sky(scene: Scene) -> Field:
    """Sky from noon to dusk, with clouds at times."""
    rng = scene.rng
    down = ((scene.y / scene.reach[1] + 1) / 2)[..., None]
    dusk = rng.random() < 0.35
    top = hue(rng.uniform(0.55, 0.68), rng.uniform(0.25, 0.75), rng.uniform(0.35, 0.9))
    low = hue(rng.uniform(0.0, 0.13), rng.uniform(0.3, 0.7), 0.95) if dusk else hue(0.57, rng.uniform(0.05, 0.3), 0.95)
    picture = top + (low - top) * down ** rng.uniform(0.7, 1.6)
    cloud = edge(scene.fractal(rng.uniform(2, 5)) - rng.uniform(-0.3, 1.4), 1.2)
    return mix(picture, np.full(3, rng.uniform(0.75, 1.0), np.float32), 0.85 * cloud)
