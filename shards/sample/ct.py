"""Axial chest CT phantoms in Hounsfield units: body, lungs, vessels and lesions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from shards.sample.figure import Slice, expose
from shards.sample.lung import Mottle, infiltrate, mottle, vessel
from shards.sample.paint import Field, Point, edge, ellipse, fractal, noise, radius, stream

CLASSES = ("NonCOVID", "COVID")
_AIR, _FAT, _MUSCLE, _BONE = -1000.0, -95.0, 45.0, 420.0


@dataclass(frozen=True, slots=True)
class _Chest:
    """A patient: lengths are fractions of half the body's width, y points to the back."""

    depth: float
    fat: float
    wide: float
    deep: float
    heart: float
    turn: float
    wobble: tuple[float, ...]
    ribs: int
    contrast: float
    level: float


@dataclass(frozen=True, slots=True)
class _View:
    """One slice's grid: pixel coordinates in the patient's lengths, and pixels per such length."""

    x: Field
    y: Field
    pixels: float
    level: float


def _chest(rng: np.random.Generator) -> _Chest:
    return _Chest(
        depth=rng.uniform(0.64, 0.74), fat=rng.uniform(0.03, 0.10), wide=rng.uniform(0.74, 0.82),
        deep=rng.uniform(0.49, 0.55), heart=rng.uniform(0.9, 1.15), turn=rng.normal(0, 0.04),
        wobble=tuple(rng.normal(0, 0.012, 4)), ribs=int(rng.integers(7, 11)), contrast=float(rng.choice([50, 60, 260])),
        level=rng.uniform(0.0, 0.75),
    )  # fmt: skip


def _wall(chest: _Chest, view: _View) -> Field:
    """Elliptic radius of the chest's inner wall: 1 where the lungs end."""
    shrink = 1 - 0.30 * max(0.0, 0.4 - view.level)
    x, y = np.abs(view.x) / (chest.wide * shrink), np.abs(view.y + 0.03) / (chest.deep * shrink)
    distance: Field = (x**2.4 + y**2.4) ** (1 / 2.4)
    return distance


def _lungs(chest: _Chest, view: _View, wall: Field) -> Field:
    """Where the lungs lie, in [0, 1]: inside the wall, outside mediastinum, spine and (low down) liver."""
    x, y, level = view.x, view.y, view.level
    soft = 2.5 / view.pixels
    heart = chest.heart * (0.62 + 0.38 * min(1.0, max(0.0, (level - 0.25) / 0.4)))
    tissue = ellipse(x, y, (0.01, -0.06), (0.17, 0.40), 0.0, soft)
    tissue = np.maximum(tissue, ellipse(x, y, (0.13 * heart, -0.11), (0.36 * heart, 0.27 * heart), 0.35, soft))
    tissue = np.maximum(tissue, ellipse(x, y, (0.02, 0.42), (0.21, 0.27), 0.0, soft))
    tissue = np.maximum(tissue, edge(0.045 - np.abs(x), soft))
    if level > 0.72:
        dome = (level - 0.72) / 0.28
        tissue = np.maximum(tissue, ellipse(x, y, (-0.36, -0.08), (0.16 + 0.2 * dome, 0.14 + 0.2 * dome), 0.2, soft))
    return np.asarray(edge(0.985 - wall, soft / chest.deep) * (1 - tissue), np.float32)


def _body(rng: np.random.Generator, chest: _Chest, view: _View, wall: Field) -> Field:
    """Everything but the lungs' inside: skin, fat, muscle, ribs, breastbone, spine, great vessels, table."""
    x, y = view.x, view.y
    height, width = x.shape
    soft = 1.5 / view.pixels
    theta = np.arctan2(y, x)
    skin = (np.abs(x) ** 2.3 + np.abs(y / chest.depth) ** 2.3) ** (1 / 2.3)
    for order, strength in enumerate(chest.wobble, start=2):
        skin = skin + strength * np.cos(order * theta)
    lean = fractal(rng, width, height, 10, 2)
    hu: Field = np.full(x.shape, _AIR, np.float32)
    sag = y - (chest.depth + 0.05) + 0.16 * x * x
    hu += 380 * (edge(0.008 - np.abs(sag), soft) + 0.7 * edge(0.008 - np.abs(sag - 0.11), soft))
    inside = edge(1 - skin, soft)
    muscle = edge(1 - chest.fat * (1 + 0.9 * np.abs(np.sin(theta)) ** 3) - skin + 0.012 * lean, 0.02)
    flesh = _FAT + (_MUSCLE - _FAT) * muscle * edge(0.9 - 0.5 * lean * edge(wall - 1.12, 0.05), 0.3)
    flesh += 120 * edge(skin - 0.985, 0.012)
    hu = hu * (1 - inside) + flesh * inside

    def add(shape: Field, density: float) -> None:
        nonlocal hu
        hu = hu * (1 - shape) + density * shape

    bars = np.cos(chest.ribs * theta + 0.7 * np.sin(2 * theta) + 9 * view.level) - 0.15
    rib = edge(0.030 - np.abs(wall - 1.06), 0.03) * edge(bars, 0.35) * edge(np.abs(x) - 0.2, 0.05)
    add(rib, _BONE + 200)
    add(rib * edge(0.010 - np.abs(wall - 1.06), 0.015), 220)
    add(ellipse(x, y, (0, -0.03 - 1.075 * chest.deep), (0.13, 0.038), 0, soft * 2), _BONE)
    add(ellipse(x, y, (0, -0.03 - 1.075 * chest.deep), (0.10, 0.018), 0, soft * 2), 150)
    for side in (-1, 1):
        add(ellipse(x, y, (0.15 * side, 0.50), (0.14, 0.032), 0.45 * side, soft * 2), _BONE)
    add(ellipse(x, y, (0, 0.58), (0.032, 0.10), 0, soft * 2), _BONE)
    add(ellipse(x, y, (0, 0.36), (0.135, 0.115), 0, soft * 2), _BONE + 160)
    add(ellipse(x, y, (0, 0.36), (0.115, 0.095), 0, soft * 2), 210 + 40 * float(lean.mean()))
    add(ellipse(x, y, (0, 0.495), (0.058, 0.048), 0, soft * 2), 25)
    blood = chest.contrast
    add(ellipse(x, y, (0.155, 0.22), (0.075, 0.075), 0, soft * 2), blood)
    if view.level < 0.3:
        add(ellipse(x, y, (0.09, -0.06), (0.085, 0.22), 0.25, soft * 2), blood)
    elif view.level < 0.55:
        add(ellipse(x, y, (-0.02, -0.22), (0.105, 0.10), 0, soft * 2), blood)
        add(ellipse(x, y, (0.10, -0.12), (0.17, 0.07), 0.5, soft * 2), blood)
    else:
        add(ellipse(x, y, (0.17, -0.12), (0.16, 0.13), 0.6, soft * 2), 0.8 * blood)
    return hu


def _vessels(rng: np.random.Generator, view: _View) -> Field:
    """Branching vessels from both hila and the dots of those that cross the slice, in [0, 1]."""
    height, width = view.x.shape
    sheet = Image.new("L", (width * 2, height * 2))
    pen = ImageDraw.Draw(sheet)

    def place(x: float, y: float) -> Point:
        return 2 * x * view.pixels + width, 2 * y * view.pixels + height

    for side in (-1, 1):
        for spread in np.linspace(-1.25, 1.25, 6):
            aim = float(spread) + rng.normal(0, 0.12)
            heading = aim if side > 0 else math.pi - aim
            root = (0.19 * side, 0.02 + 0.08 * float(spread))
            vessel(rng, pen, place, root, heading, rng.uniform(0.13, 0.22), rng.uniform(0.016, 0.028))
        for _ in range(34):
            x, y = side * rng.uniform(0.18, 0.68), rng.uniform(-0.42, 0.42)
            size = max(0.7, 2 * view.pixels * rng.uniform(0.003, 0.022) * (1 - 0.9 * (abs(x) - 0.18)))
            px, py = place(x, y)
            pen.ellipse((px - size, py - size, px + size, py + size), fill=int(rng.integers(140, 256)))
    small = sheet.resize((width, height), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.004 * view.pixels))
    return np.asarray(small, np.float32) / 255


def _pneumonia(rng: np.random.Generator, chest: _Chest, view: _View, texture: Mottle) -> Field:
    """COVID-19 as density in [0, 1]: ground glass under the pleura of both lungs, mostly at the back, partly dense."""
    opacity: Field = np.zeros(view.x.shape, np.float32)
    for side in (-1, 1):
        for _ in range(int(rng.integers(2, 5))):
            angle = rng.triangular(-0.9, 0.75, 1.25)
            reach = rng.uniform(0.76, 0.95)
            centre = (side * chest.wide * reach * math.cos(angle), chest.deep * reach * math.sin(angle) - 0.03)
            radii = (rng.uniform(0.17, 0.34), rng.uniform(0.11, 0.20))
            tangent = math.atan2(chest.deep * math.cos(angle), -side * chest.wide * math.sin(angle))
            patch = infiltrate(view.x, view.y, texture, centre, radii, tangent)
            opacity = np.maximum(opacity, patch * rng.uniform(0.50, 1.0))
    return opacity


def _other_disease(rng: np.random.Generator, view: _View, texture: Mottle) -> Field:
    """What a slice without COVID-19 may show: nothing, nodules, one focal consolidation, emphysema or a scar."""
    x, y = view.x, view.y
    opacity: Field = np.zeros(x.shape, np.float32)
    kind = rng.choice(["none", "nodules", "focal", "emphysema", "scar"], p=[0.4, 0.24, 0.12, 0.14, 0.10])
    side = float(rng.choice([-1, 1]))
    if kind == "nodules":
        for _ in range(int(rng.integers(1, 5))):
            spot = (float(rng.choice([-1, 1])) * rng.uniform(0.28, 0.6), rng.uniform(-0.3, 0.3))
            size = rng.uniform(0.022, 0.06)
            opacity = np.maximum(opacity, ellipse(x, y, spot, (size, size * rng.uniform(0.8, 1.2)), 0.3, 0.02))
    elif kind == "focal":
        spot = (side * rng.uniform(0.25, 0.42), rng.uniform(-0.2, 0.2))
        opacity = 0.9 * infiltrate(
            x, y, texture, spot, (rng.uniform(0.12, 0.2), rng.uniform(0.1, 0.16)), rng.uniform(0, 3)
        )
    elif kind == "emphysema":
        opacity = -0.12 * edge(texture.coarse - 0.5, 0.6)
    elif kind == "scar":
        line = np.abs(y - rng.uniform(-0.2, 0.25) - (side * rng.uniform(0.1, 0.5)) * x)
        opacity = 0.8 * edge(0.012 + 0.006 * texture.coarse - line, 0.02) * edge(side * x - 0.35, 0.1)
    return np.asarray(opacity, np.float32)


def draw(seed: int, label: int, patient: tuple[int, ...], number: int) -> Slice:
    """Draw slice `number` of a patient (`patient`: its place in the data set); label 1 is COVID-19.

    Size, window, surround, text and file format are drawn without regard to the label.
    """
    chest = _chest(stream(seed, 3, *patient))
    rng = stream(seed, 3, *patient, 1 + number)
    width = int(np.clip(rng.lognormal(math.log(225), 0.38), 90, 500))
    height = int(width * rng.uniform(0.68, 0.88))
    half_width = rng.uniform(0.84, 0.97) if rng.random() < 0.18 else rng.uniform(1.04, 1.25)
    pixels = width / (2 * half_width)
    px, py = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    x0 = (px[None, :] + 0.5 - width / 2) / pixels + np.zeros((height, 1), np.float32)
    y0 = (py[:, None] + 0.5 - height / 2) / pixels + np.zeros((1, width), np.float32)
    cos, sin = math.cos(chest.turn), math.sin(chest.turn)
    view = _View(
        x0 * cos + y0 * sin,
        y0 * cos - x0 * sin,
        pixels,
        float(np.clip(chest.level + 0.14 * number + rng.normal(0, 0.05), 0, 1)),
    )

    texture = mottle(rng, width, height, half_width)
    wobble = 0.022 * noise(rng, width, height, 9)
    wall = _wall(chest, view) + wobble
    lungs = _lungs(chest, view, wall)
    hu = _body(rng, chest, view, wall)
    air = -880 + 70 * view.y + 28 * texture.fine + rng.uniform(-25, 45)
    air += (20 - air) * np.clip(_vessels(rng, view), 0, 1)
    ill = stream(seed, 3, *patient, 1 + number, 1)
    sick = _pneumonia(ill, chest, view, texture) if label else _other_disease(ill, view, texture)
    air += 760 * sick * np.clip((60 - air) / 900, 0, 1)
    hu = hu * (1 - lungs) + air * lungs
    if view.level < 0.6:
        for side in (-1, 1) if view.level > 0.35 else (0,):
            tube = ellipse(view.x, view.y, (0.10 * side, 0.07), (0.055, 0.055), 0, 0.02)
            hu = hu * (1 - tube) + _AIR * tube
    return expose(rng, hu, lungs, radius(x0, y0, (0, 0), (1.22, 1.22)))
