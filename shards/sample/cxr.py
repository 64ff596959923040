"""Frontal chest radiograph phantoms as sums of attenuation: thorax, lungs, ribs, heart, diaphragm and infiltrates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from shards.sample.lung import Mottle, infiltrate, mottle, vessel
from shards.sample.paint import Field, Point, edge, ellipse, fractal, grain, label_corner, noise, stream, to_image

CLASSES = ("normal", "pneumonia", "COVID-19")
_APEX = 0.14


@dataclass(frozen=True, slots=True)
class Radiograph:
    """A drawn radiograph and the file format it is kept in."""

    image: Image.Image
    form: str
    quality: int


@dataclass(frozen=True, slots=True)
class _Chest:
    """A patient: u runs from -1 to 1 across the field, v from 0 at its top to 1 at its bottom."""

    wide: float
    base: float
    heart: float
    dense: float
    rib_step: float
    rib_slope: float
    breast: float
    bubble: float
    air: float


def _chest(rng: np.random.Generator) -> _Chest:
    return _Chest(
        wide=rng.uniform(0.68, 0.80), base=rng.uniform(0.74, 0.86), heart=rng.uniform(0.85, 1.25),
        dense=rng.uniform(0.85, 1.15), rib_step=rng.uniform(0.074, 0.088), rib_slope=rng.uniform(0.20, 0.32),
        breast=rng.uniform(0.02, 0.10) if rng.random() < 0.5 else 0.0, bubble=rng.uniform(0, 0.16),
        air=rng.uniform(0.33, 0.44),
    )  # fmt: skip


def _cage(chest: _Chest, v: Field) -> Field:
    """Half the inner width of the rib cage at every height."""
    rise = np.clip((1.02 - v) / (1.02 - _APEX + 0.03), 0, 1)
    half: Field = chest.wide * np.clip(1 - rise**3.2, 0, 1) ** 0.425
    return half


def _lungs(chest: _Chest, u: Field, v: Field, ragged: Field) -> tuple[Field, Field]:
    """Aerated lung in [0, 1], and the part of it that lies behind the heart's and diaphragm's outline."""
    side = np.abs(u)
    left = u > 0
    cage = _cage(chest, v) + 0.01 * ragged
    medial = 0.115 + 0.03 * np.cos(9 * v) + 0.02 * ragged
    lift = np.where(u < 0, 0.025, -0.01)
    dome = chest.base - lift + 0.85 * (side - 0.40 * chest.wide / 0.74) ** 2
    dome = dome + 0.5 * np.clip(side - 0.55, 0, None) ** 2
    inside = edge(cage - side, 0.035) * edge(side - medial, 0.05) * edge(v - _APEX, 0.02)
    lungs = inside * edge(dome - v, 0.022)
    heart = ellipse(u, v, (0.13, chest.base - 0.13), (0.30 * chest.heart, 0.17 * chest.heart), 0.42, 0.08)
    heart = np.maximum(heart, ellipse(u, v, (-0.06, chest.base - 0.16), (0.17 * chest.heart, 0.17), 0, 0.09))
    heart = np.maximum(heart, left * ellipse(u, v, (0.09, 0.315), (0.085, 0.06), 0, 0.06))
    return lungs * (1 - 0.9 * heart), lungs


def _torso(chest: _Chest, u: Field, v: Field, ragged: Field) -> Field:
    """Soft tissue thickness: neck, shoulders, trunk and arms, 0 outside the body."""
    shoulder = 0.20 + 0.95 / (1 + np.exp(-(v - 0.115) / 0.028))
    flank = chest.wide + 0.19 + 0.10 * v + 0.25 * np.exp(-(((v - 0.24) / 0.11) ** 2))
    outline = np.minimum(shoulder, flank) + 0.015 * ragged
    trunk = edge(outline - np.abs(u), 0.05)
    arm = edge(np.abs(u) - (flank + 0.09), 0.04) * edge(v - 0.20, 0.1) * 0.7
    roundness = np.sqrt(np.clip(1 - (u / 1.25) ** 2, 0.05, 1))
    thickness: Field = np.maximum(trunk * roundness, arm)
    return thickness


def _bones(chest: _Chest, u: Field, v: Field, tilt: float) -> Field:
    """Ribs, clavicles, spine and shoulder blades as attenuation."""
    side = np.abs(u)
    cage = _cage(chest, v)
    within = edge(cage + 0.035 - side, 0.03) * edge(v - _APEX + 0.03, 0.03)
    within = within * edge(chest.base + 0.05 - v, 0.3)
    bone: Field = np.zeros(u.shape, np.float32)
    # Ribs stand in rows of one shape, so one periodic profile draws all at the back, another all in front.
    for slope, bend, width, strength in ((-0.10, chest.rib_slope, 0.42, 0.085), (0.34, 0.10, 0.36, 0.04)):
        row = v - slope * side - bend * side**2 if slope < 0 else v - slope * (side - 0.75) + bend * side**2
        phase = row / chest.rib_step - np.floor(row / chest.rib_step) - 0.5
        across = np.abs(phase) / (width / 1.35)
        shaft = edge(1 - across, 0.35)
        rim = np.exp(-(((across - 0.82) / 0.16) ** 2))
        taper = edge(side - 0.14, 0.1) if slope < 0 else edge(side - 0.30, 0.2)
        bone += strength * (shaft + 0.45 * rim) * within * taper
    bone += 0.05 * edge(0.02 - np.abs(side - cage - 0.012), 0.03) * within
    for way in (-1, 1):
        across = np.abs(v - (0.205 - 0.13 * side - 0.05 * np.sin(5 * side) + way * tilt)) / 0.019
        bar = edge(1 - across, 0.5) + 0.5 * np.exp(-(((across - 0.85) / 0.25) ** 2))
        bone += 0.10 * bar * edge(way * u - 0.07, 0.05) * edge(0.80 - side, 0.06)
        blade = ellipse(u, v, (way * 0.90, 0.31), (0.11, 0.19), way * 0.25, 0.03)
        bone += 0.08 * blade + 0.12 * ellipse(u, v, (way * 1.02, 0.17), (0.11, 0.075), 0, 0.03)
    bodies = 0.75 + 0.25 * np.cos(2 * math.pi * v / 0.072)
    bone += 0.10 * edge(0.085 - side, 0.03) * bodies
    return bone


def _vessels(rng: np.random.Generator, width: int, height: int) -> Field:
    """Hilar vessels branching into both lungs, in [0, 1]; finer and fainter outwards."""
    sheet = Image.new("L", (width * 2, height * 2))
    pen = ImageDraw.Draw(sheet)

    def place(x: float, y: float) -> Point:
        return (x + 1) * width, y * height

    for side in (-1, 1):
        for spread in np.linspace(-1.2, 1.35, 7):
            aim = float(spread) + rng.normal(0, 0.1)
            heading = aim if side > 0 else math.pi - aim
            vessel(rng, pen, place, (0.15 * side, 0.94), heading, rng.uniform(0.14, 0.24), rng.uniform(0.02, 0.04))
    small = sheet.resize((width, height), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(width / 180))
    return np.asarray(small, np.float32) / 255


def _covid(rng: np.random.Generator, chest: _Chest, u: Field, v: Field, texture: Mottle) -> Field:
    """COVID-19: patchy haze at the outer border of both lungs, mostly in the lower and middle zones."""
    haze = np.zeros(u.shape, np.float32)
    for side in (-1, 1):
        for _ in range(int(rng.integers(2, 5))):
            height = rng.triangular(0.34, 0.66, 0.80)
            reach = float(_cage(chest, np.array([height], np.float32))[0]) * rng.uniform(0.68, 0.95)
            radii = (rng.uniform(0.14, 0.27), rng.uniform(0.09, 0.16))
            patch = infiltrate(u, v, texture, (side * reach, height), radii, side * rng.uniform(-0.4, 0.4))
            haze = np.maximum(haze, patch * rng.uniform(0.45, 0.85))
    return haze


def _pneumonia(rng: np.random.Generator, u: Field, v: Field, texture: Mottle) -> Field:
    """Other pneumonia: one dense lobe, often bounded by a fissure, seldom a second smaller focus."""
    opacity = np.zeros(u.shape, np.float32)
    for focus in range(1 if rng.random() < 0.85 else 2):
        side = float(rng.choice([-1, 1]))
        height = float(rng.choice([0.30, 0.48, 0.63])) + rng.normal(0, 0.03)
        radii = (rng.uniform(0.20, 0.30), rng.uniform(0.12, 0.18))
        patch = infiltrate(u, v, texture, (side * rng.uniform(0.30, 0.46), height), radii, rng.uniform(-0.3, 0.3))
        if rng.random() < 0.5:
            fissure = v - (height + rng.choice([-1, 1]) * 0.08) - rng.normal(0, 0.1) * np.abs(u)
            patch = patch * edge(fissure if height > 0.4 else -fissure, 0.03)
        opacity = np.maximum(opacity, np.clip(patch * ((1.5 if focus == 0 else 0.9) * rng.uniform(0.8, 1)), 0, 1))
    return opacity


def _fittings(rng: np.random.Generator, image: Image.Image) -> None:
    """Side marker, and at times electrode leads, without regard to the disease."""
    width, height = image.size
    if rng.random() < 0.6:
        text = str(rng.choice(["L", "R", "AP", "PORT"]))
        corner = 0 if text == "R" else int(rng.choice([1, 0, 1]))
        label_corner(
            image, text, corner, max(9, height // 16), int(rng.integers(200, 256)), 20 if rng.random() < 0.2 else None
        )
    if rng.random() < 0.15:
        pen = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(1, 3))):
            start, heading = rng.uniform(0.15, 0.85, 2), rng.uniform(0, 2 * math.pi)
            points = [(float(start[0]) * width, float(start[1]) * height)]
            for _ in range(24):
                heading += rng.normal(0, 0.18)
                x, y = points[-1]
                points.append((x + width / 40 * math.cos(heading), y + width / 40 * math.sin(heading)))
            pen.line(points, fill=int(rng.integers(200, 240)), width=max(1, width // 200))
            x, y = points[0]
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=225)


def draw(seed: int, label: int, patient: tuple[int, ...], number: int) -> Radiograph:
    """Draw radiograph `number` of a patient (`patient`: its place in the data set); `label` indexes CLASSES.

    Size, exposure, position, markers and file format are drawn without regard to the label.
    """
    patient_rng = stream(seed, 2, *patient)
    chest = _chest(patient_rng)
    rng = stream(seed, 2, *patient, 1 + number)
    width = int(rng.integers(180, 321))
    height = int(width * rng.uniform(0.82, 1.12))
    turn, zoom = rng.normal(0, 0.03), rng.uniform(0.92, 1.12)
    shift_u, shift_v = rng.normal(0, 0.04), rng.normal(0, 0.02)
    px = ((np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1)[None, :]
    py = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    u = (px * zoom + turn * (py - 0.5) * 2 + shift_u) + np.zeros_like(py)
    v = ((py - 0.5) * zoom - turn * px / 2 + 0.5 + shift_v) + np.zeros_like(px)

    ragged = noise(rng, width, height, 7)
    texture = mottle(rng, width, height, 1.25)
    air, behind = _lungs(chest, u, v, ragged)
    rise = np.clip((v - 0.15) / 0.7, 0, 1)
    body = _torso(chest, u, v, ragged)
    depth = body * (0.56 + 0.20 * rise) * chest.dense
    depth += 0.12 * edge(0.20 - np.abs(u), 0.3) * body
    depth += chest.breast * (
        ellipse(u, v, (-0.42, 0.62), (0.32, 0.17), 0, 0.06) + ellipse(u, v, (0.42, 0.62), (0.32, 0.17), 0, 0.06)
    )
    depth += 0.16 * body * edge(v - chest.base, 0.25) * (1 - behind)
    depth -= air * (chest.air + 0.05 * rise) * (0.8 + 0.2 * edge(np.abs(u) - 0.25, 0.3))
    depth += air * (0.14 * _vessels(rng, width, height) + 0.015 * texture.fine)
    if label == CLASSES.index("pneumonia"):
        depth += 0.34 * air * _pneumonia(patient_rng, u, v, texture)
    elif label == CLASSES.index("COVID-19"):
        depth += 0.34 * air * _covid(patient_rng, chest, u, v, texture)
    depth += _bones(chest, u, v, rng.normal(0, 0.006)) * np.clip(body * 2, 0, 1)
    depth -= 0.13 * edge(0.035 - np.abs(u + 0.01), 0.03) * edge(0.36 - v, 0.06) * body
    depth -= chest.bubble * ellipse(u, v, (0.38, chest.base + 0.09), (0.15, 0.05), 0.1, 0.04)
    return _expose(rng, depth + 0.012 * fractal(rng, width, height, 5, 2))


def _expose(rng: np.random.Generator, depth: Field) -> Radiograph:
    """Turn attenuation into a picture: exposure, scatter noise, collimator, markers, mode and format."""
    height, width = depth.shape
    black, white = rng.uniform(0.04, 0.16), rng.uniform(0.86, 1.06)
    light = np.clip((depth - black) / (white - black), 0, 1.2) ** rng.uniform(0.75, 1.3)
    light = light * rng.uniform(0.85, 1.0) + rng.uniform(0, 0.05)
    light = light + rng.uniform(0.006, 0.022) * grain(rng, width, height)
    image = to_image(light)
    if rng.random() < 0.15:
        border = [int(value) for value in rng.integers(0, width // 14, 4)]
        open_field = image.crop((border[0], border[1], width - border[2], height - border[3]))
        image = Image.new("L", (width, height), 4)
        image.paste(open_field, (border[0], border[1]))
    _fittings(rng, image)
    form = "PNG" if rng.random() < 0.35 else "JPEG"
    return Radiograph(image.convert("RGB" if rng.random() < 0.3 else "L"), form, int(rng.integers(75, 96)))
