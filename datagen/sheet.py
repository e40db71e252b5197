"""A contact sheet: the first thing to look at. Pictures, each with its labels beside it."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from datagen.datasets.coco import ANNOTATIONS, Coco
from datagen.exporters import Entry
from datagen.files import encode_png, require_png
from datagen.palette import palette
from datagen.runs import Run, open_run
from decoders.errors import UserError
from decoders.files import write_atomic
from decoders.labels import CATEGORY, NORMALS_STORAGE, DenseMap, InstanceSet, Label, LabelSet, Skeleton, Taxonomy

CELL_HEIGHT = 192
"""Pixels of every picture; their widths follow."""
_WIDEST_CELL = 2 * CELL_HEIGHT
_GAP = 8
_FONT_SIZE = 13
_LINE = 18
_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_BONE = (255, 255, 0)
_OUTLINE = (255, 255, 255)
_ndimage = cast(Any, ndimage)
_OVERLAY = 0.6
"""Share of the class colour in an overlay."""
_RAMP = np.array([(12, 8, 38), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32)
"""Dark to bright, evenly in lightness."""


def contact_sheet(folder: Path, *, to: Path, count: int = 16) -> None:
    """Write a PNG of up to `count` pictures, spread over a run's accepted samples or over a dataset of our COCO form.

    Raises:
        UserError: the folder is neither, is damaged or holds no picture; `to` is no name of a PNG.
    """
    require_png(to)
    if (folder / "plan.yaml").is_file():
        run = open_run(folder)
        entries, taxonomy = list(_of_run(run, count)), run.taxonomy
    elif (folder / ANNOTATIONS).is_file():
        dataset = Coco(root=folder)
        entries, taxonomy = list(_of_dataset(dataset, count)), dataset.taxonomy
    else:
        raise UserError(
            f"{folder} is neither a run (plan.yaml) nor a dataset ({ANNOTATIONS}); give the folder that "
            "`datagen generate`, `label` or `export` wrote"
        )
    write_atomic(to, encode_png(draw_sheet(entries, taxonomy)))


def _of_run(run: Run, count: int) -> Iterator[Entry]:
    store = run.store
    accepted = [(shard, name) for shard in store.contiguous() for name in shard.accepted][: run.target]
    chosen: dict[int, set[str]] = {}
    for shard, name in (accepted[position] for position in spread(len(accepted), count)):
        if shard.index not in chosen:
            store.verify(shard)
        chosen.setdefault(shard.index, set()).add(name)
    for index, names in chosen.items():
        for sample in store.read(index, only=frozenset(names)):
            recipe = sample.recipe
            yield Entry(recipe.id, sample.image, sample.labels, {"caption": f"{recipe.id}  {recipe.prompt}"})


def _of_dataset(dataset: Coco, count: int) -> Iterator[Entry]:
    for position in spread(len(dataset), count):
        found = dataset[position]
        caption = f"{found.name}  {dataset.caption(found.name)}"
        yield Entry(found.name, found.image, found.labels, {"caption": caption})


def spread(total: int, count: int) -> list[int]:
    """Up to `count` different positions in `range(total)`, first and last among them, evenly between."""
    if total <= count:
        return list(range(total))
    return [round(step * (total - 1) / max(count - 1, 1)) for step in range(count)]


def draw_sheet(items: Sequence[Entry], taxonomy: Taxonomy) -> UInt8[np.ndarray, "height width 3"]:
    """Blocks of picture, overlay of each map of classes, each other map (near is bright, invalid black).

    Objects are outlined on the first map of classes, and have colours of their own where there is none. A legend
    stands above, `extra["caption"]` below each block; there are as many blocks side by side as make the sheet about
    square.

    Raises:
        UserError: there is no picture.
    """
    if not items:
        raise UserError("a contact sheet of no pictures; expected at least one")
    columns = _columns(items)
    ranges = {task: _range(items, task) for task in columns}
    blocks = [[_cell(pixels) for pixels in _panels(item, columns, ranges, taxonomy)] for item in items]
    widths = [max(block[column].width for block in blocks) for column in range(len(columns) + 1)]
    block_width = sum(widths) + _GAP * len(widths)
    abreast = _abreast(len(blocks), block_width, CELL_HEIGHT + _LINE + _GAP)
    width = block_width * abreast + _GAP
    font = _font()
    legend = list(_legend(taxonomy, font, width))
    captions = [_wrapped(str(item.extra.get("caption") or item.name), font, block_width - _GAP) for item in items]
    rows = [range(start, min(start + abreast, len(items))) for start in range(0, len(items), abreast)]
    heights = [CELL_HEIGHT + _LINE * max(len(captions[index]) for index in row) + _GAP for row in rows]
    top = _GAP + _LINE * (max(line for line, _, _, _ in legend) + 1) + _GAP
    sheet = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, x, name, color in legend:
        y = _GAP + line * _LINE
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=color, outline=_INK)
        draw.text((x + 18, y), name, fill=_INK, font=font)
    for row, height in zip(rows, heights, strict=True):
        for place, index in enumerate(row):
            left = x = _GAP + place * block_width
            for cell, cell_width in zip(blocks[index], widths, strict=True):
                sheet.paste(cell, (x, top))
                x += cell_width + _GAP
            for number, text in enumerate(captions[index]):
                draw.text((left, top + CELL_HEIGHT + number * _LINE), text, fill=_INK, font=font)
        top += height
    return np.array(sheet)


def _abreast(count: int, width: int, height: int) -> int:
    """How many of `count` blocks of a size stand side by side in the narrowest sheet that is no taller than wide."""
    return next((columns for columns in range(1, count) if -(-count // columns) * height <= columns * width), count)


def _columns(items: Sequence[Entry]) -> list[str]:
    """The labels to show, maps of classes first."""
    maps = {task: label for item in items for task, label in item.labels.items() if isinstance(label, DenseMap)}
    classes = sorted(task for task, label in maps.items() if label.storage.unit == CATEGORY)
    objects = {task for item in items for task, label in item.labels.items() if isinstance(label, InstanceSet)}
    return [*(classes or sorted(objects)), *sorted(maps.keys() - set(classes))]


def _range(items: Sequence[Entry], task: str) -> tuple[float, float]:
    """The values that are drawn brightest and darkest, the same for all rows."""
    labels = [label for item in items if isinstance(label := item.labels.get(task), DenseMap)]
    if any(label.storage.unit == NORMALS_STORAGE.unit for label in labels):
        return (-1.0, 1.0)  # a direction has the same colour on every sheet, that of its file
    values = [label.values[label.valid].ravel() for label in labels if label.valid.any()]
    if not values:
        return (0.0, 1.0)
    low, high = np.percentile(np.concatenate(values), (2, 98))
    return float(low), float(max(high, low + 1e-6))


def _panels(
    item: Entry, columns: Sequence[str], ranges: dict[str, tuple[float, float]], taxonomy: Taxonomy
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    assert not isinstance(item.image, bytes), "a sheet is drawn from pixels"
    yield item.image
    for task in columns:
        label = item.labels.get(task)
        panel = np.zeros_like(item.image) if label is None else _draw(label, item.image, ranges[task], taxonomy)
        if task == columns[0]:
            panel = _outlined(panel, item.labels)
            if taxonomy.skeleton is not None:
                panel = _with_points(panel, item.labels, taxonomy.skeleton)
        yield panel


def _draw(
    label: Label, image: UInt8[np.ndarray, "height width 3"], limits: tuple[float, float], taxonomy: Taxonomy
) -> UInt8[np.ndarray, "height width 3"]:
    if isinstance(label, InstanceSet):
        numbers = np.zeros(image.shape[:2], np.int64)
        for index, mask in enumerate(label.masks, start=1):
            numbers[mask] = index
        return _overlay(image, np.array([(0, 0, 0), *palette(len(label.masks))], np.float32)[numbers], numbers > 0)
    if label.storage.unit == CATEGORY:
        colors = np.array([(0, 0, 0), *taxonomy.colors], np.float32)
        ids = np.where(label.valid, label.values[..., 0], 0).astype(np.int64)
        return _overlay(image, colors[ids], ids > 0)
    low, high = limits
    scaled = ((label.values - low) / (high - low)).clip(0, 1)
    pixels = scaled * 255 if label.values.shape[2] == 3 else _ramp(1 - scaled[..., 0])
    return np.where(label.valid[..., None], np.rint(pixels), 0).astype(np.uint8)


def _outlined(panel: UInt8[np.ndarray, "height width 3"], labels: LabelSet) -> UInt8[np.ndarray, "height width 3"]:
    """With the border of each object in white, the smallest on top, as thick as a line of the sheet."""
    drawn = panel.copy()
    thickness = max(1, round(panel.shape[0] / CELL_HEIGHT))
    for label in labels.values():
        if isinstance(label, InstanceSet):
            for index in label.back_to_front:
                mask = label.masks[index]
                inner = _ndimage.binary_erosion(mask, iterations=thickness)
                drawn[mask] = panel[mask]
                drawn[mask & ~inner] = _OUTLINE
    return drawn


def _with_points(
    panel: UInt8[np.ndarray, "height width 3"], labels: LabelSet, skeleton: Skeleton
) -> UInt8[np.ndarray, "height width 3"]:
    """Bones between the points that are given, and the points, hidden ones hollow."""
    canvas = Image.fromarray(panel)
    draw = ImageDraw.Draw(canvas)
    for label in labels.values():
        if not isinstance(label, InstanceSet) or label.keypoints_px is None:
            continue
        for points in label.keypoints_px:
            for first, second in skeleton.bones:
                if points[first, 2] and points[second, 2]:
                    draw.line([*map(float, (*points[first, :2], *points[second, :2]))], fill=_BONE)
            for x, y, visibility in points.tolist():
                if visibility:
                    draw.rectangle((x - 1, y - 1, x + 1, y + 1), outline=_BONE, fill=_BONE if visibility > 1 else None)
    return np.array(canvas)


def _overlay(
    image: UInt8[np.ndarray, "height width 3"],
    colors: Float[np.ndarray, "height width 3"],
    where: np.ndarray,
) -> UInt8[np.ndarray, "height width 3"]:
    mixed = image * (1 - _OVERLAY) + colors * _OVERLAY
    return np.where(where[..., None], np.rint(mixed), image).astype(np.uint8)


def _ramp(brightness: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width 3"]:
    stops = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(brightness, stops, _RAMP[:, channel]) for channel in range(3)], axis=-1)


def _cell(pixels: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    """Scaled to the row's height, or to the widest cell and centred."""
    height, width = pixels.shape[:2]
    scale = min(CELL_HEIGHT / height, _WIDEST_CELL / width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    cell = Image.new("RGB", (size[0], CELL_HEIGHT), _PAPER)
    cell.paste(Image.fromarray(pixels).resize(size, method), (0, (CELL_HEIGHT - size[1]) // 2))
    return cell


_Font = ImageFont.FreeTypeFont


@cache
def _font() -> _Font:
    """DejaVu Sans, which matplotlib brings: Pillow's own has no letters beyond ASCII."""
    import matplotlib  # a third of a second, which a fit that draws nothing need not wait

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", _FONT_SIZE)


def _legend(taxonomy: Taxonomy, font: _Font, width: int) -> Iterator[tuple[int, int, str, tuple[int, int, int]]]:
    """(line, x, name, colour) of each class."""
    line, x = 0, _GAP
    for name, color in zip(taxonomy.names, taxonomy.colors, strict=True):
        taken = 18 + round(font.getlength(name)) + 2 * _GAP
        if x > _GAP and x + taken > width:
            line, x = line + 1, _GAP
        yield line, x, name, color
        x += taken


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    """Lines that fit, broken between words where there is a place; three at most."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= 3 else [*lines[:2], f"{lines[2]} ..."]
