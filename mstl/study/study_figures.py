"""The paper's Figures 3 and 4 of a study: LEEP of every network and source, and where networks look."""

from __future__ import annotations

import math

import numpy as np

from mstl.places import heatmap_path
from mstl.study.paper_tables import leep_places
from mstl.study.render import Picture, natural_width, read_png
from mstl.study.reported import reported
from mstl.study.study_files import StudyFacts
from mstl.study.study_parts import NodePart
from shards.errors import MstlError

_CHAINS = {"no_tl": ("no transfer",), "stl_n": ("stl_n",), "stl_n+stl_m": ("stl_n", "stl_m")}
_POSITIVES, _IMAGES = 349, 746  # of COVID19-CT


def leep_pictures(facts: StudyFacts) -> list[Picture]:
    """Figure 3 as measured, where anything was, then as reported: never in one panel."""
    from mstl.evaluation.leep import Leep
    from mstl.evaluation.leep_figure import leep_figure
    from mstl.evaluation.leep_run import Scored
    from mstl.evaluation.leep_sources import Source

    def scored(network: str, chain: tuple[str, ...], nats: float, floor_nats: float) -> Scored:
        source = Source(name="", kind="run", model=network, chain=chain)
        score = Leep(nats=nats, floor_nats=floor_nats)
        return Scored(source=source, image_size=0, classes=None, score=score, notes=())

    measured = []
    for (network, _), place in leep_places(facts).items():
        found = [(result.values["nats"], result.leep) for result in place.results if result.leep is not None]
        if found:
            chain = tuple(found[0][1].sources[0].chain)
            mean = float(np.mean([nats for nats, _ in found]))
            measured.append(scored(network, chain, mean, found[0][1].target.floor_nats))
    pictures = []
    if measured:
        png = leep_figure(measured, title="LEEP, measured")
        pictures.append(
            Picture(
                png=png,
                caption="Figure 3, measured: LEEP in bits (left) and nats (right). The values stand in Table 6.",
                alt="LEEP of each network by what it was trained on, measured; the values stand in Table 6",
                width=natural_width(png),
            )
        )
    share = _POSITIVES / _IMAGES
    floor = share * math.log(share) + (1 - share) * math.log(1 - share)
    printed = [
        scored(network, _CHAINS[column], one.value * math.log(2), floor)
        for (table, network, column, _), one in reported().items()
        if table == 6 and column is not None
    ]
    png = leep_figure(printed, title="LEEP, reported by the paper")
    pictures.append(
        Picture(
            png=png,
            caption="Figure 3, reported: the printed values of Table 6, read as bits. "
            f"−H(Y) is that of {_POSITIVES} positives among {_IMAGES} images.",
            alt="LEEP of each network by what it was trained on, as the paper reports it; the values stand in Table 6",
            width=natural_width(png),
        )
    )
    return pictures


def heatmap_pictures(facts: StudyFacts) -> tuple[list[Picture], list[str]]:
    """Figure 4 of each node and network that has heatmaps, of its first seed; and what is wrong with others' files."""
    shown: dict[tuple[str, str], NodePart] = {}
    problems = []
    pictures = []
    for node in sorted(facts.study.nodes, key=lambda node: node.seed):
        if node.explain and node.state == "finished" and (node.name, node.network) not in shown:
            file = heatmap_path(facts.folder / node.path, node.evaluate[0])
            try:
                png = read_png(file)
            except MstlError as error:
                problems.append(str(error))
                continue
            shown[node.name, node.network] = node
            what = f"{node.network}, {node.name}, seed {node.seed}, {node.evaluate[0]} split of {node.data.source}"
            pictures.append(
                Picture(
                    png=png,
                    caption=f"Figure 4: {what}",
                    alt=f"Grad-CAM and attention heatmaps: {what}",
                    width=natural_width(png),
                )
            )
    return pictures, problems
