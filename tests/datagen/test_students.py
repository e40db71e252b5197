"""What every student must do, for all of the folder; then what each does in its own way."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datagen.datasets.pocket_scenes import PocketScenes
from datagen.evaluation.study import as_tensor
from datagen.plugins import choose_part, kinds
from datagen.students import Student
from datagen.students.detector import Detector
from datagen.students.segmenter import Segmenter
from decoders.augmentation import BORDER_GREY
from decoders.errors import UserError
from decoders.labels import AnnotatedImage, DenseMap, InstanceSet, LabelSet, Taxonomy

SCENES = PocketScenes(count=2, height=64, width=64)
SETTINGS: dict[str, dict[str, Any]] = {
    "segmenter": {"encoder": "tu-mobilenetv3_small_050", "depth_weight": 0.5},
    "detector": {"short_side": 64},
}


def student(kind: str) -> Student:
    part = choose_part("students", {"kind": kind, **SETTINGS[kind]}, at="student")
    return part.build(taxonomy=SCENES.taxonomy)


def empty(picture: AnnotatedImage) -> LabelSet:
    """The same labels with nothing in them."""
    void = np.zeros((64, 64), bool)
    found: dict[str, Any] = {}
    for name, label in picture.labels.items():
        if isinstance(label, InstanceSet):
            found[name] = label.only(np.zeros(len(label.masks), bool))
        else:
            found[name] = DenseMap(values=label.values, valid=void, confidence=label.confidence, storage=label.storage)
    return found


def gradient(made: Student, network: nn.Module, labels: Sequence[LabelSet], pictures: torch.Tensor) -> float:
    network.train()
    loss = made.loss(network, pictures, labels)
    assert torch.isfinite(loss)
    network.zero_grad()
    loss.backward()
    return sum(float(each.grad.abs().sum()) for each in network.parameters() if each.grad is not None)


def test_every_kind_is_tested_here():
    assert kinds("students") == sorted(SETTINGS)


@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_contract(kind: str):
    made = student(kind)
    assert isinstance(made, Student)
    torch.manual_seed(0)
    network = made.build()
    pictures = as_tensor([scene.image for scene in SCENES])
    assert gradient(made, network, [scene.labels for scene in SCENES], pictures) > 0
    gradient(made, network, [empty(scene) for scene in SCENES], pictures)  # finite where nothing is labelled
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wide = torch.cat([pictures[:1], pictures[1:]], dim=3)
    found = made.read(network.eval(), wide)
    assert len(found) == 1
    assert tuple(found[0]) == made.labels
    for label in found[0].values():
        assert (label.masks.shape[1:] if isinstance(label, InstanceSet) else label.valid.shape) == (64, 128)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=f"reading changed {name}")
    scores = made.scores()
    assert tuple(scores) == made.labels
    for scene in SCENES:
        for name, score in scores.items():
            score.add(scene.labels[name], scene.labels[name])
    label, figure = made.headline.split(" ")
    assert scores[label].result()[figure] == pytest.approx(1.0)


def test_equal_seeds_build_equal_networks():
    made = student("segmenter")
    networks: list[nn.Module] = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(made.build())
    pairs = zip(networks[0].parameters(), networks[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_segmenter_learns_one_picture_by_heart():
    made = Segmenter(encoder="resnet18", depth_weight=0.5, taxonomy=SCENES.taxonomy)
    torch.manual_seed(0)
    network = made.build()
    scene = SCENES[0]
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    pictures, labels = as_tensor([scene.image, scene.image]), [scene.labels, scene.labels]
    for _ in range(25):
        optimiser.zero_grad()
        made.loss(network, pictures, labels).backward()
        optimiser.step()
    scores = made.scores()
    # In training mode, as the running statistics of so few updates are still those of the beginning.
    for name, label in made.read(network, pictures)[0].items():
        scores[name].add(label, scene.labels[name])
    assert scores["semantic"].result()["pixel_accuracy"] > 0.9
    assert scores["depth"].result()["absrel"] < 0.3


def test_objects_that_nobody_separated_are_not_learned():
    made = Detector(short_side=64, taxonomy=SCENES.taxonomy)
    car, person = (SCENES.taxonomy.names.index(name) + 1 for name in ("car", "person"))
    things = [name for name, thing in zip(SCENES.taxonomy.names, SCENES.taxonomy.is_thing, strict=True) if thing]
    mask = np.zeros((64, 64), bool)
    mask[10, 20:30] = True  # one pixel high
    objects = InstanceSet.collect(
        [mask, mask, np.zeros_like(mask)], [car, person, car], size=(64, 64), is_crowd=[False, True, False]
    )
    target = made.target(objects, "cpu")
    assert target["boxes"].tolist() == [[20, 10, 30, 11]]
    assert target["labels"].tolist() == [things.index("car") + 1]
    assert target["masks"].shape == (1, 64, 64)


def test_what_only_crowds_show_is_not_learned_as_background():
    class Watched(nn.Module):
        def forward(self, pictures: list[torch.Tensor], _: object) -> dict[str, torch.Tensor]:
            shown.extend(pictures)
            return {"loss": torch.zeros(())}

    shown: list[torch.Tensor] = []
    car = SCENES.taxonomy.names.index("car") + 1
    crowd, single = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    crowd[:20], single[10:30] = True, True
    objects = InstanceSet.collect([crowd, single], [car, car], size=(64, 64), is_crowd=[True, False])
    nothing = InstanceSet.collect([], [], size=(64, 64))
    picture = torch.rand(2, 3, 64, 64)
    made = Detector(short_side=64, taxonomy=SCENES.taxonomy)
    made.loss(Watched(), picture, [{"instances": objects}, {"instances": nothing}])
    assert (shown[0][:, :10] == BORDER_GREY / 255).all()
    assert torch.equal(shown[0][:, 10:], picture[0][:, 10:]), "also where an object lies on the crowd"
    assert torch.equal(shown[1], picture[1])


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"encoder 'resnet' is none of segmentation-models-pytorch"):
        Segmenter(encoder="resnet", taxonomy=SCENES.taxonomy)
    with pytest.raises(UserError, match=r"could not be made \(.*weights: null"):
        Segmenter(weights="no_such_weights", taxonomy=SCENES.taxonomy).build()
    stuff = Taxonomy(names=("sky",), is_thing=(False,), colors=((0, 0, 0),))
    with pytest.raises(UserError, match=r"no class is countable"):
        Detector(taxonomy=stuff)
    made = student("segmenter")
    network, labels = made.build(), [{**scene.labels, "depth": scene.labels["semantic"]} for scene in SCENES]
    with pytest.raises(UserError, match=r"depth label is no map in metres"):
        made.loss(network, as_tensor([scene.image for scene in SCENES]), labels)
