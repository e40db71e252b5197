"""COCO: pictures, label PNGs and JSON files (instances, stuff, panoptic), resumable and the same bytes every time.

    images/<file>   annotations/{instances,stuff,panoptic}.json   panoptic/<image name>.png
    <map>/<image name>.png for every dense map, <map>_confidence/<image name>.png where a reader said it

While a dataset is being written, `parts/` holds what the JSON files will say of each picture; a picture counts as
written once its part is there, and `finish` merges the parts in the order of the file names.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from datagen.coco_format import is_map_key, map_key, repairs_key
from datagen.exporters import Entry
from datagen.exporters._coco_entries import categories, check_labels, describe, objects, panoptic, stuff
from datagen.files import IMAGE_SUFFIXES, encode_png, image_size, json_bytes, read_json, write_json
from datagen.instances import find_objects
from datagen.packing import confidence_maps, pack_map
from decoders.errors import UserError
from decoders.files import atomic_file, no_other_writer, remove_stale, write_atomic
from decoders.labels import DenseMap, LabelSet, Taxonomy

_Part = dict[str, Any]
_BETWEEN = "; "
_DIGEST = re.compile("[0-9a-f]{64}")


class Coco:
    """Exporter of the COCO form."""

    def __init__(self, *, min_instance_pixels: int = 20) -> None:
        """
        Args:
            min_instance_pixels: smaller regions of a semantic map make no object; given objects are all kept.
        """
        self.min_instance_pixels = min_instance_pixels

    def export(self, samples: Iterable[Entry], taxonomy: Taxonomy, folder: Path, info: Mapping[str, Any]) -> None:
        """As `Exporter.export`; pictures of an earlier, larger export of the same source are taken out."""
        with no_other_writer(folder):
            writer = CocoWriter(folder, taxonomy, info=info, min_instance_pixels=self.min_instance_pixels)
            seen: set[str] = set()
            for name, image, labels, extra in samples:
                if not writer.has(name):
                    writer.add(name, image, labels, extra)
                seen.add(writer.file_name(name, image))
            writer.keep_only(seen)
            writer.finish()


class CocoWriter:
    """Writes one dataset folder; opened again with the same settings it goes on where it stopped.

    Raises:
        UserError: the folder holds something else: other files, or a dataset of another taxonomy, `info` or setting.
    """

    def __init__(
        self, folder: Path, taxonomy: Taxonomy, *, info: Mapping[str, Any], min_instance_pixels: int = 20
    ) -> None:
        self.folder = folder
        self.taxonomy = taxonomy
        self._info = dict(info)
        self._min_pixels = min_instance_pixels
        self._parts = folder / "parts"
        self._settings_file = self._parts / "settings.json"
        # Where the model lies may change. What it is, the digest of the run or of the reader tells.
        source = {name: value for name, value in self._info.items() if name != "model"}
        settings = {"taxonomy": asdict(taxonomy), "info": source, "min_instance_pixels": min_instance_pixels}
        self._digest = hashlib.sha256(json_bytes(settings)).hexdigest()
        told = {**source, "categories": categories(taxonomy), "min_instance_pixels": min_instance_pixels}
        self._told: dict[str, Any] = json.loads(json_bytes(told))
        self._finished = False
        self.file_names: set[str] = set()
        """Of the pictures that are written whole."""
        self._open()

    def _open(self) -> None:
        instances = self._annotations("instances")
        if self._settings_file.exists():
            settings = read_json(self._settings_file)
            self._check_digest(settings["digest"], settings.get("told", {}))
            self.file_names = {path.stem for path in self._parts.glob("*.json") if path != self._settings_file}
        elif instances.exists():
            data = read_json(instances)
            info = data.get("info", {}) if isinstance(data, dict) else {}
            self._check_digest(
                info.get("settings_digest"), {**info, "categories": data.get("categories")} if info else {}
            )
            self.file_names = {image["file_name"] for image in data["images"]}
            self._finished = True
            shutil.rmtree(self._parts, ignore_errors=True)  # killed while it was being removed
        elif any(path.is_file() and not path.name.startswith(".") for path in self.folder.rglob("*")):
            raise UserError(f"{self.folder} is not empty and holds no dataset of ours; choose another folder with --to")
        else:
            self._write_settings()
        for subfolder in self.folder.iterdir():
            if subfolder.is_dir():
                remove_stale(subfolder)
        self._stems = {Path(name).stem: name for name in self.file_names}

    def _write_settings(self) -> None:
        write_json(self._settings_file, {"digest": self._digest, "told": self._told})

    def _check_digest(self, found: Any, told: Mapping[str, Any]) -> None:
        if found != self._digest:
            raise UserError(
                f"{self.folder} holds a dataset of other settings: {self._differences(told)}. It is not overwritten: "
                "choose another folder, or take the settings that it has"
            )

    def _differences(self, told: Mapping[str, Any]) -> str:
        """What is another than in the dataset that is there, as far as that tells."""
        changed: list[str] = []
        for name, value in self._told.items():
            known = name in told or (bool(told) and name in self._info)
            if known and told.get(name) != value:
                there, now = _shown(told.get(name)), _shown(value)
                same = "of the same names, but other ids, colours or phrases"
                changed.append(f"{name} ({same if there == now else f'{there} there, {now} now'})")
        return "; ".join(changed) or "which, it does not tell (min_instance_pixels, or all if another program wrote it)"

    def has(self, name: str) -> bool:
        """Whether the picture, named as for `add`, is written whole."""
        return name in self.file_names or f"{name}.png" in self.file_names

    @staticmethod
    def file_name(name: str, image: bytes | UInt8[np.ndarray, "height width 3"]) -> str:
        """What the picture's file is called: a content keeps its name, pixels become a PNG."""
        return name if isinstance(image, bytes) else f"{name}.png"

    def add(
        self,
        name: str,
        image: bytes | UInt8[np.ndarray, "height width 3"],
        labels: LabelSet,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one picture and its labels; arguments as the fields of `Entry`.

        Raises:
            UserError: the name is taken or no file name, the content is no picture, or the disk is full.
            ValueError: a label does not fit the picture, the taxonomy or its file.
        """
        file_name = self.file_name(name, image)
        stem, suffix = Path(file_name).stem, Path(file_name).suffix
        if Path(file_name).name != file_name or suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"picture {file_name!r}: expected a file name without folder that ends in .png, .jpg or alike"
            )
        if stem in self._stems:
            raise UserError(
                f"pictures {self._stems[stem]} and {file_name} would share the label file {stem}.png; rename one"
            )
        content = image if isinstance(image, bytes) else encode_png(image)
        height, width = image_size(content, file_name) if isinstance(image, bytes) else image.shape[:2]
        check_labels(labels, self.taxonomy, size=(height, width), name=name)
        labels = {**labels, **confidence_maps(labels)}
        maps = {task: label for task, label in sorted(labels.items()) if isinstance(label, DenseMap)}
        files = {f"{task}/{stem}.png": encode_png(pack_map(label)) for task, label in maps.items()}
        picture = {"file_name": file_name, "height": height, "width": width}
        picture |= {map_key(task): file for task, file in zip(maps, files, strict=True)}
        picture |= {repairs_key(task): label.repairs for task, label in maps.items() if label.repairs}
        if taken := sorted((picture.keys() | {"id"}) & (extra or {}).keys()):
            raise ValueError(f"extra fields {taken} of picture {name} would replace the writer's own")
        found = find_objects(labels, self.taxonomy, min_pixels=self._min_pixels)
        part: _Part = {
            "image": {**picture, **(extra or {})},
            "instances": objects(found[0], self.taxonomy) if found else [],
            "instances_from": [found[1]] if found else [],
            "stuff": stuff(labels, self.taxonomy),
            "maps": {task: describe(label) for task, label in maps.items()},
            "panoptic": [],
        }
        if found and (merged := panoptic(labels, found[0], self.taxonomy)) is not None:
            colors, segments = merged
            files[f"panoptic/{stem}.png"] = encode_png(colors)
            part["panoptic"] = [{"file_name": f"{stem}.png", "segments_info": segments}]
        self.reopen()
        for file, data in files.items():
            write_atomic(self.folder / file, data)
        write_atomic(self.folder / "images" / file_name, content)
        write_json(self._part_file(file_name), part)
        self.file_names.add(file_name)
        self._stems[stem] = file_name

    def keep_only(self, file_names: Iterable[str]) -> None:
        """Take out all other pictures, with their maps."""
        left_over = sorted(self.file_names - set(file_names))
        if left_over:
            self.reopen()
        for file_name in left_over:
            picture = read_json(self._part_file(file_name))["image"]
            self._part_file(file_name).unlink()  # first: without its part, a picture does not count
            self.file_names.remove(file_name)
            del self._stems[Path(file_name).stem]
            (self.folder / "images" / file_name).unlink(missing_ok=True)
            (self.folder / "panoptic" / f"{Path(file_name).stem}.png").unlink(missing_ok=True)
            for key in filter(is_map_key, picture):
                (self.folder / picture[key]).unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the JSON files: ids from 1, pictures in the order of their file names. Nothing to do, nothing done."""
        if self._finished:
            return
        info = self._merged_info()
        (self.folder / "images").mkdir(exist_ok=True)  # there even when no picture is
        for kind in ("stuff", "panoptic", "instances"):
            self._merge(kind, info)
        self._settings_file.unlink()  # first: from here on the JSON files count
        shutil.rmtree(self._parts)
        self._finished = True

    def _merge(self, kind: str, info: Mapping[str, Any]) -> None:
        """One JSON file, written piece by piece: a large dataset does not fit into memory at once."""
        pictures: list[bytes] = []
        count = 0
        with atomic_file(self._annotations(kind)) as file:
            file.write(b'{"annotations":[')
            for image_id, part in enumerate(self._all_parts(), start=1):
                pictures.append(json_bytes({**part["image"], "id": image_id}))
                for entry in part[kind]:
                    file.write(b",\n" if count else b"\n")
                    count += 1
                    number = {} if kind == "panoptic" else {"id": count}  # there, segments have ids, pictures have none
                    file.write(json_bytes({**entry, **number, "image_id": image_id}))
            file.write(b'\n],\n"categories":' + json_bytes(categories(self.taxonomy)) + b',\n"images":[\n')
            file.write(b",\n".join(pictures))
            file.write(b'\n],\n"info":' + json_bytes(info) + b"}\n")

    def _merged_info(self) -> dict[str, Any]:
        maps: dict[str, Any] = {}
        sources: set[str] = set()
        for part in self._all_parts():
            sources |= set(part["instances_from"])
            for task, about in part["maps"].items():
                if maps.setdefault(task, about) != about:
                    raise ValueError(
                        f"map {task} has two storages, {maps[task]} and {about}; a dataset has one per map"
                    )
        own = {**maps, "settings_digest": self._digest}
        if sources:
            own["instances"] = _BETWEEN.join(sorted(sources))
        if taken := sorted(own.keys() & self._info.keys()):
            raise ValueError(f"info fields {taken} would be replaced by the writer's own")
        return {**self._info, **own}

    def _all_parts(self) -> Iterator[_Part]:
        for file_name in sorted(self.file_names):
            yield read_json(self._part_file(file_name))

    def reopen(self) -> None:
        """Take the JSON files of a finished dataset apart again, so that pictures can be added."""
        if not self._finished:
            return
        files = {kind: read_json(self._annotations(kind)) for kind in ("instances", "stuff", "panoptic")}
        info = files["instances"]["info"]
        entries = {kind: _by_picture(data["annotations"]) for kind, data in files.items()}
        for picture in files["instances"]["images"]:
            image_id = picture.pop("id")
            part: _Part = {kind: by_picture.get(image_id, []) for kind, by_picture in entries.items()}
            part["image"] = picture
            part["instances_from"] = info["instances"].split(_BETWEEN) if "instances" in info else []
            part["maps"] = {task: info[task] for task in info if map_key(task) in picture}
            write_json(self._part_file(picture["file_name"]), part)
        self._write_settings()  # last: from here on the parts count
        self._finished = False

    def _annotations(self, kind: str) -> Path:
        return self.folder / "annotations" / f"{kind}.json"

    def _part_file(self, file_name: str) -> Path:
        return self._parts / f"{file_name}.json"


def _shown(value: Any) -> str:
    """A setting in a message: digests by their beginning, classes by their names."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:8]
    if isinstance(value, list) and value and all(isinstance(entry, dict) and "name" in entry for entry in value):
        return ", ".join(str(entry["name"]) for entry in value)
    return json.dumps(value, ensure_ascii=False)


def _by_picture(annotations: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Annotations without their ids, by image id."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    for annotation in annotations:
        annotation.pop("id", None)
        grouped.setdefault(annotation.pop("image_id"), []).append(annotation)
    return grouped
