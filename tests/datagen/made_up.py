"""Small pictures with labels, for tests of files and formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datagen.files import encode_png, write_json
from datagen.records import Recipe, Sample
from decoders.files import write_atomic
from decoders.labels import InstanceSet, Label, Skeleton, Taxonomy, metric_depth, semantic_map

TAXONOMY = Taxonomy(
    names=("sky", "car", "traffic sign", "background"),
    is_thing=(False, True, True, False),
    colors=((70, 130, 180), (0, 0, 142), (220, 220, 0), (0, 0, 0)),
    category_ids=(11, 3, 7, 12),
    phrases=("sky", "a car", "a traffic sign", "background"),
    skeleton=Skeleton(class_name="car", points=("left_light", "right_light"), bones=((0, 1),)),
)
RING = [[1.0, 1.0, 7.0, 1.0, 7.0, 5.0, 1.0, 5.0]]
"""An outline in the pictures of `write_coco`."""


def image(seed: int = 0, height: int = 20, width: int = 33) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def labels(seed: int = 0, height: int = 20, width: int = 33) -> dict[str, Label]:
    """A semantic map with holes, parts and void, and a depth map with invalid pixels."""
    generator = np.random.default_rng(seed)
    ids = np.ones((height, width), np.uint8)
    ids[2:12, 3:15] = 2
    ids[5:8, 6:9] = 4  # a hole
    ids[14:19, 20:30] = 3
    ids[0, -1] = 0
    ids[generator.random((height, width)) < 0.03] = 2
    depth = generator.uniform(0.5, 90, (height, width)).astype(np.float32)
    depth[ids == 1] = np.inf
    confidence = generator.random((height, width)).astype(np.float32)
    return {"semantic": semantic_map(ids, confidence, repairs=seed), "depth": metric_depth(depth)}


def objects(height: int = 20, width: int = 33) -> InstanceSet:
    """A ring with two points, two parts, one pixel, an empty mask and a crowd."""
    masks = np.zeros((5, height, width), bool)
    points = np.zeros((5, 2, 3), np.float32)
    points[0] = [(2.25, 9.5, 2), (11, 9.5, 1)]
    masks[0, 1:11, 2:12] = True
    masks[0, 4:7, 5:8] = False
    masks[1, 12:15, 1:4] = masks[1, 16:19, 20:30] = True
    masks[2, -1, -1] = True
    masks[4, :3, width // 2 :] = True
    return InstanceSet(
        masks=masks,
        category_ids=np.array([2, 3, 3, 2, 2], np.int64),
        scores=np.array([0.9, 0.5, 1, 1, 1], np.float32),
        is_crowd=np.array([False, False, False, False, True]),
        keypoints_px=points,
    )


def sample(number: int, height: int = 20, width: int = 33) -> Sample:
    return Sample(
        recipe=Recipe(id=f"{number:08d}", prompt=f"prompte № {number}", seed=number, wanted=("car",)),
        image=image(number, height, width),
        labels={**labels(number, height, width), "instances": objects(height, width)},
    )


def coco_annotation(number: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 5, "category_id": category, "segmentation": segmentation} | more


def write_coco(root: Path, annotations: list[dict[str, Any]], **more: Any) -> Path:
    """One picture 10 wide and 6 high in a subfolder, and one without objects."""
    for name in ("sub/ü 1.png", "2.png"):
        write_atomic(root / "images" / name, encode_png(image(0, 6, 10)))
    pictures = [
        {"id": 5, "file_name": "sub/ü 1.png", "width": 10, "height": 6, "license": 3, "coco_file": None},
        {"id": 2, "file_name": "2.png", "width": 10, "height": 6},
    ]
    categories = [{"id": 40, "name": "cat", "supercategory": "animal"}, {"id": 3, "name": "dog"}]
    data = {"images": pictures, "annotations": annotations, "categories": categories}
    write_json(root / "annotations" / "instances.json", data | more)
    return root


def readme_example(mentioning: str) -> str:
    """The piece of Python in the README that mentions something."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    pieces = [piece.split("```")[0] for piece in text.split("```python\n")[1:]]
    (found,) = [piece for piece in pieces if mentioning in piece]
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def failing(error: BaseException, *, after: int = 0) -> Callable[..., None]:
    """A stand-in for a system call that works `after` times and then raises."""
    calls = 0

    def call(*_arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error

    return call
