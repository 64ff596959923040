"""Natural-like colour pictures of six classes that differ in shape and texture, while their colours overlap."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from shards.sample.paint import Field, edge, grain, hue, noise, radius, stream, to_image
from shards.sample.scenery import Scene, foliage, mix, sky


def daisy(scene: Scene) -> Field:
    """Flowers: narrow petals around a dotted disc, seen from above or aslant."""
    rng = scene.rng
    picture = foliage(scene)
    count = int(rng.choice([1, 1, 2, 4]))
    for _ in range(count):
        size = rng.uniform(0.30, 0.48) if count == 1 else rng.uniform(0.15, 0.30)
        spot = [rng.uniform(-1, 1) * max(0.05, side - 0.7 * size) for side in scene.reach]
        slant, turn = rng.uniform(0.6, 1.0), rng.uniform(0, math.pi)
        far = radius(scene.x, scene.y, (spot[0], spot[1]), (size, size * slant), turn)
        angle = np.arctan2(scene.y - spot[1], scene.x - spot[0]) + 0.15 * far
        petals = int(rng.integers(9, 20))
        wave = np.abs(np.cos(angle * petals / 2 + rng.uniform(0, 3)))
        length = 0.45 + 0.55 * wave ** rng.uniform(0.35, 0.7)
        tint = hue(
            float(rng.choice([0.0, 0.15, 0.8, 0.93])), float(rng.choice([0.04, 0.1, 0.6])), rng.uniform(0.8, 1.0)
        )
        shade = (0.62 + 0.38 * np.clip(far, 0, 1) ** 0.7 * (0.6 + 0.4 * wave))[..., None]
        picture = mix(picture, picture * 0.55, 0.7 * edge(1.08 - far, 0.25))
        picture = mix(picture, tint * shade, edge(length - far, 0.05))
        core = edge(rng.uniform(0.24, 0.34) - far, 0.04)
        dots = (0.75 + 0.3 * noise(rng, *scene.size, 70))[..., None] * (1.1 - np.clip(far, 0, 1)[..., None])
        picture = mix(picture, hue(rng.uniform(0.08, 0.15), 0.85, rng.uniform(0.5, 0.95)) * dots, core)
    return picture


def honeycomb(scene: Scene) -> Field:
    """A sheet of hexagonal cells, some capped, seen near or far, aslant."""
    rng = scene.rng
    turn, cell, slant = rng.uniform(0, math.pi), rng.uniform(0.07, 0.20), rng.normal(0, 0.25)
    scale = (1 + slant * scene.y + 0.25 * rng.normal() * scene.x) / cell
    bend = 0.02 * noise(rng, *scene.size, 3)
    u = (scene.x * math.cos(turn) + scene.y * math.sin(turn) + bend) * scale
    v = (scene.y * math.cos(turn) - scene.x * math.sin(turn)) * scale
    # The nearest of the two interleaved rectangular lattices that make up the hexagons' centres.
    root = math.sqrt(3)
    first = (u - np.round(u), v - root * np.round(v / root))
    second = (u - np.floor(u) - 0.5, v - root * (np.floor(v / root) + 0.5))
    nearer = np.hypot(*first) < np.hypot(*second)
    a, b = np.where(nearer, first[0], second[0]), np.where(nearer, first[1], second[1])
    depth = 0.5 - np.maximum(np.abs(a), np.abs(a) / 2 + np.abs(b) * root / 2)
    tint = rng.uniform(0.03, 0.15)
    column, row = np.round(2 * (u - a)), np.round(2 * (v - b) / root)
    capped = np.sin(column * 12.9898 + row * 78.233) * 43758.547 % 1 < rng.choice([0.0, 0.15, 0.5])
    hollow = hue(tint + 0.02, rng.uniform(0.5, 1), rng.uniform(0.05, 0.45))
    honey = hue(tint, rng.uniform(0.4, 0.95), rng.uniform(0.55, 0.95))
    wall = hue(tint + 0.03, rng.uniform(0.2, 0.7), rng.uniform(0.75, 1.0))
    inside = np.where(capped[..., None], honey, hollow + (honey - hollow) * np.clip(0.35 + a - b, 0, 1)[..., None])
    picture = mix(inside, wall, edge(rng.uniform(0.06, 0.10) - depth, 0.07))
    return np.asarray(picture * (1 + 0.10 * scene.fractal(4))[..., None], np.float32)


def alp(scene: Scene) -> Field:
    """Mountain ridges behind each other, snow on the heights, under a sky."""
    rng = scene.rng
    width, height = scene.size
    picture = sky(scene)
    rock = rng.uniform(0.0, 0.7)
    ridges = int(rng.integers(2, 5))
    folds = 1 - 2 * np.abs(scene.fractal(5, 4))
    for ridge in range(ridges):
        near = (ridge + 1) / ridges
        peaks = np.interp(np.linspace(0, 40, width), np.arange(41), rng.standard_normal(41))
        tops = np.interp(np.linspace(0, rng.uniform(2.5, 5), width), np.arange(8), rng.uniform(-1, 1, 8))
        crest = scene.reach[1] * (-0.55 + 1.25 * near) - (0.34 * tops + 0.022 * peaks) * (1.35 - near)
        below = scene.y - crest[None, :]
        slope = np.sign(np.gradient(tops))[None, :]
        lit = np.clip(0.62 + 0.22 * slope + 0.22 * folds, 0.25, 1.1)
        stone = hue(rock, rng.uniform(0.05, 0.35), 0.25 + 0.3 * near) * lit[..., None]
        if near == 1 and rng.random() < 0.6:
            wood = 0.8 + 0.3 * noise(rng, width, height, 60)
            stone = hue(rng.uniform(0.2, 0.4), 0.5, rng.uniform(0.15, 0.4)) * wood[..., None]
        else:
            snow = edge(rng.uniform(0.05, 0.30) - below + 0.10 * folds, 0.05)
            white = np.array([0.93, 0.95, 1.0], np.float32) * (0.45 + 0.55 * lit)[..., None]
            stone = mix(stone, white, snow)
        hazy = stone + (0.75 - stone) * (0.4 * (1 - near))
        picture = mix(picture, hazy, edge(below, 0.01))
    return picture


def stone_wall(scene: Scene) -> Field:
    """A wall of fitted stones of uneven size and tint, with dark joints or light mortar."""
    rng = scene.rng
    across, flat = rng.uniform(3.5, 7.5), rng.uniform(0.9, 1.9)
    bend_x, bend_y = (0.05 * noise(rng, *scene.size, 8) for _ in range(2))
    u, v = (scene.x + 3) * across + bend_x * 2.2, (scene.y + 3) * (across * flat) + bend_y * 2.2
    u = u + 0.5 * (np.floor(v) % 2)
    jitter = rng.uniform(-0.32, 0.32, (2, 64, 64))
    tone = rng.random((64, 64))
    cell_x, cell_y = np.floor(u).astype(int), np.floor(v).astype(int)
    best = np.full(u.shape, 9, np.float32)
    next_best, stone = best.copy(), np.zeros(u.shape, np.float32)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            i, j = (cell_x + dx) % 64, (cell_y + dy) % 64
            far = np.hypot(u - (cell_x + dx + 0.5 + jitter[0][i, j]), v - (cell_y + dy + 0.5 + jitter[1][i, j]))
            stone = np.where(far < best, tone[i, j], stone)
            next_best = np.minimum(next_best, np.maximum(far, best))
            best = np.minimum(best, far)
    joint = edge(rng.uniform(0.08, 0.16) - (next_best - best), 0.10)
    tint = rng.uniform(0.02, 0.16) if rng.random() < 0.8 else rng.uniform(0, 1)
    face = hue(tint, rng.uniform(0.05, 0.5), rng.uniform(0.5, 0.9)) * (0.55 + 0.5 * stone)[..., None]
    face = face * (1 + 0.16 * scene.fractal(28, 3) - 0.2 * best)[..., None]
    mortar = hue(tint, 0.2, float(rng.choice([0.10, 0.2, 0.8])))
    return mix(face, mortar, joint)


def balloon(scene: Scene) -> Field:
    """Hot-air balloons with gores and basket, against the sky and at times over land."""
    rng = scene.rng
    picture = sky(scene)
    if rng.random() < 0.5:
        land = edge(scene.y - scene.reach[1] * rng.uniform(0.55, 0.85) + 0.03 * scene.fractal(4), 0.02)
        picture = mix(picture, foliage(scene), land)
    count = int(rng.choice([1, 1, 2, 3]))
    for _ in range(count):
        size = rng.uniform(0.24, 0.36) if count == 1 else rng.uniform(0.11, 0.22)
        cx = rng.uniform(-1, 1) * max(0.02, scene.reach[0] - size)
        cy = rng.uniform(-1, 0.5) * max(0.02, scene.reach[1] - 1.2 * size)
        dx, dy = (scene.x - cx) / size, (scene.y - cy) / size
        half = np.where(dy < 0, np.sqrt(np.clip(1 - dy**2, 0, 1)), np.clip(1 - 0.62 * np.clip(dy, 0, 2) ** 1.7, 0, 1))
        half = half * edge(1.22 - dy, 0.02)
        longitude = np.arcsin(np.clip(dx / np.maximum(half, 1e-3), -1, 1))
        gores = np.cos(longitude * int(rng.integers(5, 12)) + rng.uniform(0, 6))
        bands = np.sin(dy * rng.uniform(4, 9)) if rng.random() < 0.35 else 1.0
        first, second = (hue(rng.random(), rng.uniform(0.5, 1), rng.uniform(0.5, 1)) for _ in range(2))
        cloth = mix(first + np.zeros_like(picture), second, edge((gores * bands), 0.2))
        light = np.clip(1.05 - 0.4 * np.hypot(dx + 0.4, dy + 0.4), 0.3, 1)[..., None]
        picture = mix(picture, (cloth * light), edge((half - np.abs(dx) - 0.03), 0.05))
        basket = edge(0.13 - np.abs(dx), 0.04) * edge(0.11 - np.abs(dy - 1.52), 0.04)
        ropes = edge(0.02 - np.abs(np.abs(dx) - 0.13 - 0.3 * np.clip(1.4 - dy, 0, 1)), 0.03) * edge(
            0.12 - np.abs(dy - 1.3), 0.03
        )
        picture = mix(picture, hue(0.07, 0.6, 0.3), np.maximum(basket, ropes))
    return picture


def mushroom(scene: Scene) -> Field:
    """Mushrooms: a domed cap, plain or spotted, on a stem in the undergrowth."""
    rng = scene.rng
    picture = foliage(scene)
    count = int(rng.choice([1, 1, 2, 3]))
    for _ in range(count):
        size = rng.uniform(0.25, 0.40) if count == 1 else rng.uniform(0.13, 0.24)
        cx = rng.uniform(-1, 1) * max(0.02, scene.reach[0] - size)
        cy = rng.uniform(-0.4, 0.5) * max(0.02, scene.reach[1] - size)
        lean = rng.normal(0, 0.15)
        dy = (scene.y - cy) / size
        dx = (scene.x - cx) / size - lean * dy
        thick = rng.uniform(0.16, 0.30)
        stem = (
            edge(thick + 0.05 * dy**2 - np.abs(dx), 0.05)
            * edge(dy + 0.05, 0.05)
            * edge(rng.uniform(1.1, 1.7) - dy, 0.1)
        )
        pale = hue(rng.uniform(0.06, 0.14), rng.uniform(0.05, 0.4), rng.uniform(0.7, 0.98))
        picture = mix(picture, (pale * (0.95 - 0.45 * np.clip(dx / thick, -1, 1))[..., None]), stem)
        flat = rng.uniform(0.5, 0.95)
        rim = 0.14 * np.sqrt(np.clip(1 - dx**2, 0, 1))
        dome = edge((1 - np.hypot(dx, dy / flat)), 0.06) * edge((rim - dy), 0.05)
        colour = hue(float(rng.choice([0.0, 0.04, 0.08, 0.1])), rng.uniform(0.3, 0.95), rng.uniform(0.4, 0.9))
        cap = colour * np.clip(1.1 - 0.5 * np.hypot(dx + 0.35, dy + 0.6), 0.35, 1.1)[..., None]
        if rng.random() < 0.5:
            cap = mix(
                cap,
                np.full(3, 0.93, np.float32),
                edge(noise(rng, *scene.size, 3.2 / size) - 0.9, 0.25),
            )
        gills = edge((dy - rim + 0.13), 0.05)[..., None] * (0.35 + 0.15 * np.cos(dx * 50))[..., None]
        picture = mix(picture, (cap * (1 - gills)), dome)
    return picture


CLASSES: tuple[tuple[str, Callable[[Scene], Field]], ...] = (
    ("n02782093", balloon),
    ("n03530642", honeycomb),
    ("n04326547", stone_wall),
    ("n07734744", mushroom),
    ("n09193705", alp),
    ("n11939491", daisy),
)


def draw(seed: int, label: int, place: tuple[int, ...]) -> Image.Image:
    """Draw one picture (mode RGB, a few L) of class `label`; `place` is its place in the data set.

    Sizes run from 100 to 260 px; light, colour cast, focus and noise are drawn without regard to the class.
    """
    rng = stream(seed, 1, label, *place)
    shorter, aspect = int(rng.integers(100, 191)), rng.uniform(1.0, 1.4)
    longer = min(260, int(shorter * aspect))
    width, height = (longer, shorter) if rng.random() < 0.65 else (shorter, longer)
    x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / shorter)[None, :] + np.zeros((height, 1), np.float32)
    y = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) / shorter)[:, None] + np.zeros((1, width), np.float32)
    picture = CLASSES[label][1](Scene(rng, x, y))
    fall = 1 + rng.normal(0, 0.18) * x + rng.normal(0, 0.18) * y - rng.uniform(0, 0.35) * (x * x + y * y)
    cast = 1 + rng.normal(0, 0.06, 3)
    picture = np.clip(picture * fall[..., None] * cast * rng.uniform(0.75, 1.15), 0, 1)
    picture = picture ** rng.uniform(0.8, 1.3)
    picture = picture + rng.uniform(0.005, 0.035) * grain(rng, width, height)[..., None]
    image = to_image(picture)
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.2)))
    return image.convert("L") if rng.random() < 0.03 else image
