"""LEEP of runs, weights files and untrained networks on a shard set: what is read, calibrated, refused and written."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_leep import slow_leep
from tiny_runs import SIDE, make_run, make_shards, tiny_classifier

from mstl.cli.leep import command
from mstl.evaluation import leep_figure as figure_module
from mstl.evaluation import leep_run
from mstl.evaluation.leep import Leep
from mstl.evaluation.leep_run import Scored, Target, as_body, calibrate, open_target, score_sources
from mstl.evaluation.leep_sources import NO_TRANSFER, UNSUPERVISED, Source, find_head, network_of, open_sources
from mstl.models.registry import build_backbone
from mstl.runs import load_classifier, open_run
from mstl.weights import save_weights
from shards.cache import CacheOptions
from shards.errors import MstlError
from shards.schema import Manifest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leep")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return make_shards(folder / "target", per_class=5)


@pytest.fixture(scope="module")
def target(folder: Path, manifest: Manifest) -> Target:
    assert manifest.samples("train") == 10
    return open_target(folder / "target", split="train", cache=CacheOptions())


@pytest.fixture(scope="module")
def source_run(folder: Path) -> Path:
    """A run of three source classes with attention."""
    return make_run(
        folder / "stl_m", folder / "source", make_shards(folder / "source", classes=("a", "b", "c"), per_class=1),
        stage="stl_m",
    )  # fmt: skip


@pytest.fixture(scope="module")
def blind_run(folder: Path, manifest: Manifest) -> Path:
    return make_run(folder / "sstl_m", folder / "target", manifest, stage="sstl_m", parent=None)


def test_a_run_is_scored_on_a_target_of_other_classes(source_run: Path, target: Target) -> None:
    (scored,) = score_sources(open_sources([source_run], untrained=(), seed=0), target)
    classifier = load_classifier(open_run(source_run))
    rows, labels = [], []
    with closing(target.loader(SIDE, CPU)) as loader, torch.no_grad():
        for batch in loader:
            rows += [classifier(x[None]).double().softmax(1)[0].numpy() for x in batch.views["x"]]
            labels += batch.labels.tolist()
    assert len(labels) == 10 and set(labels) == {0, 1}
    assert scored.score is not None
    assert scored.score.nats == pytest.approx(slow_leep(np.stack(rows), labels), rel=1e-5)
    assert scored.score.nats > scored.score.floor_nats == pytest.approx(-np.log(2))
    assert (scored.classes, scored.image_size) == (3, SIDE)


def test_a_chain_runs_from_the_first_stage_to_the_last(tmp_path: Path, folder: Path, manifest: Manifest) -> None:
    run = None
    for stage in ("stl_n", "stl_m", "finetune"):
        run = make_run(tmp_path / stage, folder / "target", manifest, stage=stage, parent=run)
    assert run is not None
    (source,) = open_sources([run], untrained=(), seed=0)
    assert source.chain == ("stl_n", "stl_m", "finetune")


def test_a_target_of_one_class_is_refused_and_all_splits_may_be_one(tmp_path: Path, source_run: Path) -> None:
    make_shards(tmp_path / "one", per_class=1, without=("train", 1))
    with pytest.raises(MstlError, match="all of one class"):
        open_target(tmp_path / "one", split="train", cache=CacheOptions())
    whole = open_target(tmp_path / "one", split="all", cache=CacheOptions())
    body = as_body(score_sources(open_sources([source_run], untrained=(), seed=0), whole), whole)
    assert (body["target"]["n"], body["target"]["class_counts"]) == (5, [3, 2])


def test_the_target_is_seen_as_in_evaluation(target: Target) -> None:
    inputs = target.inputs(224)
    assert (inputs.resize, inputs.image_size, inputs.crop, inputs.channels) == (256, 224, "centre", "grey")
    assert not (inputs.flip or inputs.jitter or inputs.moves)


def test_a_self_supervised_run_has_no_leep_and_does_not_stop_the_others(
    source_run: Path, blind_run: Path, target: Target
) -> None:
    scored = score_sources(open_sources([blind_run, source_run], untrained=(), seed=0), target)
    assert scored[0].score is None and scored[0].notes == (UNSUPERVISED,)
    assert scored[1].score is not None
    with pytest.raises(MstlError, match=r"without labels.*Name a supervised run"):
        open_sources([blind_run], untrained=(), seed=0)


def test_a_source_that_learned_the_target_itself_is_marked(folder: Path, manifest: Manifest, target: Target) -> None:
    run = make_run(folder / "finetune", folder / "target", manifest)
    (scored,) = score_sources(open_sources([run], untrained=(), seed=0), target)
    assert scored.notes == ("it was trained on the target itself, with its labels",)


def test_weights_files_score_as_their_run_does(source_run: Path, target: Target, tmp_path: Path) -> None:
    weights = source_run / "weights.safetensors"
    record = open_run(source_run)
    tensors = load_classifier(record).state_dict()
    foreign = {f"module.{name.removeprefix('backbone.')}": value for name, value in tensors.items()}
    torch.save({"epoch": 3, "state_dict": foreign}, tmp_path / "foreign.pth.tar")
    sources = open_sources([source_run, weights, tmp_path / "foreign.pth.tar"], untrained=(), seed=0)
    assert [source.model for source in sources] == ["resnet14-attn5"] * 3
    scores = [one.score for one in score_sources(sources, target)]  # the run's image size is everybody's
    assert scores[0] is not None and scores == [scores[0]] * 3


def test_heads_that_classify_nothing_are_not_taken() -> None:
    weight, bias = torch.zeros(128, 2048), torch.zeros(128)
    network = {f"module.encoder_q.{name}": value for name, value in _names("resnet14").items()}
    moco = {**network, "module.encoder_q.fc.weight": weight, "module.encoder_q.fc.bias": bias,
            "module.queue": torch.zeros(128, 8)}  # fmt: skip
    assert find_head(moco) == (None, UNSUPERVISED)
    assert find_head({**network, "projector.0.weight": weight, "fc.weight": weight, "fc.bias": bias})[0] is None
    assert "only a backbone" in find_head(network)[1]
    assert "only a backbone" in find_head({**network, "fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)})[1]
    two = {f"{name}.{part}": value for name in ("fc", "head") for part, value in (("weight", weight), ("bias", bias))}
    assert "several" in find_head({**network, **two})[1]
    averaged = {"state_dict.fc.weight": weight, "state_dict.fc.bias": bias,
                "state_dict_ema.fc.weight": weight, "state_dict_ema.fc.bias": bias}  # fmt: skip
    assert find_head(averaged) == ("state_dict.fc", "")


@pytest.mark.parametrize("name", ["resnet14-attn0", "resnet14-attn1", "resnet50-attn0", "resnet101-attn5"])
def test_a_network_is_known_by_its_weights(name: str) -> None:
    assert network_of({f"model.{key}": value for key, value in _names(name).items()}) == name


def test_a_network_that_we_do_not_have_is_refused() -> None:
    weights = {key: value for key, value in _names("resnet50").items() if not key.startswith("layer3.5.")}
    with pytest.raises(MstlError, match=r"no network here, as in a network of 3-4-5-3 blocks"):
        network_of(weights)


def _names(model: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return dict(build_backbone(model).state_dict())


def test_calibration_is_the_mean_of_the_batches_statistics(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leep_run, "BATCH", 5)
    (source,) = open_sources([], untrained=["resnet14"], seed=4)
    assert source.build is not None
    classifier, plain = source.build(), source.build()
    calibrate(classifier, lambda: target.loader(SIDE, CPU), CPU)
    assert not classifier.training
    means, variances = [], []
    with closing(target.loader(SIDE, CPU)) as loader:
        for batch in loader:
            assert len(batch) == 5
            out = plain.backbone.conv1(batch.views["x"])
            means.append(out.mean((0, 2, 3)))
            variances.append(out.transpose(0, 1).flatten(1).var(1))
    assert len(means) == 2
    torch.testing.assert_close(classifier.backbone.bn1.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(classifier.backbone.bn1.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=0)
    for name, value in plain.named_parameters():
        torch.testing.assert_close(dict(classifier.named_parameters())[name], value, rtol=0, atol=0)


def test_batches_of_calibration_are_about_equal(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leep_run, "BATCH", 9)
    with closing(target.loader(SIDE, CPU)) as loader:
        assert [len(batch) for batch in loader] == [5, 5]  # not 9 and 1


def test_untrained_networks_are_calibrated_and_follow_from_the_seed(target: Target) -> None:
    before = torch.get_rng_state()

    def score(seed: int) -> Leep:
        (one,) = score_sources(open_sources([], untrained=["resnet14"], seed=seed), target, image_size=32)
        assert one.classes == 1000 and one.source.chain == (NO_TRANSFER,)
        assert one.score is not None
        return one.score

    assert score(1) == score(1) != score(2)
    assert torch.equal(torch.get_rng_state(), before)
    (source,) = open_sources([], untrained=["resnet14"], seed=1)
    assert source.build is not None
    raw = source.build()
    found, labels = leep_run.source_probabilities(raw, lambda: target.loader(32, CPU), CPU)
    assert leep_run.leep(found, labels) != score(1)


def test_image_sizes(source_run: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are shown what they were trained at; the others what all runs share, else 224; or all what is asked for."""
    monkeypatch.setattr(leep_run, "source_probabilities", lambda *_, **__: (np.full((2, 2), 0.5), np.array([0, 1])))
    run, file = open_sources([source_run, source_run / "weights.safetensors"], untrained=(), seed=0)

    def sizes(sources: list[Source], asked: int | None = None) -> list[int]:
        return [one.image_size for one in score_sources(sources, target, image_size=asked)]

    assert sizes([run, file]) == [SIDE, SIDE]
    assert sizes([file]) == [224]
    assert sizes([run, file], 64) == [64, 64]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing-there"], "no such run or file"),
        ([], "no source is named"),
        (["--untrained", "resnet13"], "no network of this name"),
    ],
)
def test_what_is_no_source_is_refused(words: list[str], said: str, folder: Path, target: Target) -> None:
    result = CliRunner().invoke(command, [*words, "--shards", str(target.folder)])
    assert isinstance(result.exception, MstlError) and said in str(result.exception)


def test_the_command_writes_table_json_and_figure(
    source_run: Path, blind_run: Path, target: Target, tmp_path: Path
) -> None:
    words = [str(source_run), str(blind_run), "--untrained", "resnet14", "--shards", str(target.folder)]
    result = CliRunner().invoke(command, [*words, "--out", str(tmp_path / "new")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    body = json.loads((tmp_path / "new" / "leep.json").read_text())
    assert Image.open(tmp_path / "new" / "leep.png").format == "PNG"
    assert [row["kind"] for row in body["sources"]] == ["untrained", "run", "run"]
    untrained, scored, blind = body["sources"]
    assert (untrained["source_classes"], untrained["seed"], scored["source_classes"]) == (1000, 0, 3)
    assert blind["nats"] is None and blind["notes"] == [UNSUPERVISED]
    assert scored["bits"] == pytest.approx(scored["nats"] / np.log(2))
    assert f"{scored['nats']:.4f}" in result.output and f"{scored['bits']:.4f}" in result.output
    assert "compare with care" in result.output
    about = body["target"]
    assert (about["n"], about["class_counts"], about["split"]) == (10, [5, 5], "train")
    assert about["floor_bits"] == pytest.approx(-1)
    again = CliRunner().invoke(command, [*words, "--json"], catch_exceptions=False)
    printed = json.loads(again.stdout)
    assert printed["sources"] == body["sources"]


def test_the_figure_shows_every_score_and_joins_what_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(figure_module, "to_png", lambda figure: drawn.append(figure) or b"")

    def scored(model: str, chain: tuple[str, ...], nats: float | None) -> Scored:
        score = None if nats is None else Leep(nats=nats, floor_nats=-0.69)
        source = Source(name="s", kind="run", model=model, chain=chain)
        return Scored(source=source, image_size=32, classes=3, score=score, notes=())

    figure_module.leep_figure(
        [
            scored("resnet50-attn0", ("stl_n", "stl_m"), -0.4),
            scored("resnet50-attn0", (NO_TRANSFER,), -0.6),
            scored("resnet50-attn0", ("stl_n",), -0.5),
            scored("resnet50-attn5", ("stl_n",), -0.45),
            scored("resnet50-attn5", ("stl_m",), -0.35),
            scored("resnet50-attn5", ("sstl_m",), None),
        ],
        title="t",
    )
    (axes, _), *_ = [(figure.axes[0], figure) for figure in drawn]
    points = sorted(
        round(float(line.get_ydata()[0]) * np.log(2), 6) for line in axes.lines if len(line.get_ydata()) == 1
    )
    assert points == [-0.6, -0.5, -0.45, -0.4, -0.35]
    (joined,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert list(np.round(np.array(joined.get_ydata()) * np.log(2), 6)) == [-0.6, -0.5, -0.4]
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    assert {"no transfer", "stl_n", "stl_m", "stl_n → stl_m"} <= set(colours)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["resnet50", "resnet50-attn5"]


def test_a_damaged_file_is_refused(tmp_path: Path, target: Target) -> None:
    classifier = tiny_classifier("resnet14", 3)
    tensors = {**classifier.backbone.state_dict(), **classifier.fc.state_dict(prefix="fc.")}
    save_weights(tmp_path / "w.safetensors", {**tensors, "conv1.weight": tensors["conv1.weight"] * torch.nan})
    with pytest.raises(MstlError, match="not finite"):
        score_sources(open_sources([tmp_path / "w.safetensors"], untrained=(), seed=0), target, image_size=32)
