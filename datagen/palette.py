"""Colours for classes that came without any."""


def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """RGB for semantic ids 1..count, all different and none black: PASCAL VOC's map, three bits a round."""
    return tuple(_color(index) for index in range(1, count + 1))


def _color(index: int) -> tuple[int, int, int]:
    channels = [0, 0, 0]
    for position in range(24):
        channels[position % 3] |= (index >> position & 1) << (7 - position // 3)
    return (channels[0], channels[1], channels[2])
