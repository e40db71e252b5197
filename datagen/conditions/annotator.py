"""The maps that published ControlNets were trained on, from the package controlnet-aux."""

import warnings
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from datagen.records import Guide
from decoders.errors import UserError
from decoders.references import file_digest

DetectorName = Literal[
    "canny", "lineart_standard", "shuffle",
    "hed", "scribble_hed", "pidinet", "scribble_pidinet", "mlsd", "lineart", "lineart_coarse", "lineart_anime",
    "midas", "zoe", "leres", "normalbae", "openpose", "openpose_full",
]  # fmt: skip


class _Detector(NamedTuple):
    class_name: str
    files: tuple[str, ...] = ()
    """Weights, in the folder that the user gives."""
    arguments: Mapping[str, bool] = MappingProxyType({})
    rescales: bool = True
    """Whether its answer has a size of its own, `image_resolution`; else it is that of the picture."""


_HED, _PIDINET = ("ControlNetHED.pth",), ("table5_pidinet.pth",)
_LINEART = ("sk_model.pth", "sk_model2.pth")
_OPENPOSE = ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth")
_DETECTORS: Mapping[DetectorName, _Detector] = MappingProxyType(
    {
        "canny": _Detector("CannyDetector"),
        "lineart_standard": _Detector("LineartStandardDetector", rescales=False),
        "shuffle": _Detector("ContentShuffleDetector"),
        "hed": _Detector("HEDdetector", _HED),
        "scribble_hed": _Detector("HEDdetector", _HED, {"scribble": True}),
        "pidinet": _Detector("PidiNetDetector", _PIDINET),
        "scribble_pidinet": _Detector("PidiNetDetector", _PIDINET, {"scribble": True}),
        "mlsd": _Detector("MLSDdetector", ("mlsd_large_512_fp32.pth",)),
        "lineart": _Detector("LineartDetector", _LINEART),
        "lineart_coarse": _Detector("LineartDetector", _LINEART, {"coarse": True}),
        "lineart_anime": _Detector("LineartAnimeDetector", ("netG.pth",)),
        "midas": _Detector("MidasDetector", ("dpt_hybrid-midas-501f0c75.pt",)),
        "zoe": _Detector("ZoeDetector", ("ZoeD_M12_N.pt",)),
        "leres": _Detector("LeresDetector", ("res101.pth", "latest_net_G.pth")),
        "normalbae": _Detector("NormalBaeDetector", ("scannet.pt",)),
        "openpose": _Detector("OpenposeDetector", _OPENPOSE),
        "openpose_full": _Detector("OpenposeDetector", _OPENPOSE, {"include_hand": True, "include_face": True}),
    }
)
_INSTALL = "pip install 'datagen[annotators]'"
_STEP = 64
"""Sides that are multiples of it are the ones that controlnet-aux leaves as they are."""


class Annotator:
    """Three planes that a detector of controlnet-aux sees in the guide's picture, at the picture's own size.

    `canny`, `lineart_standard` and `shuffle` need no weights; the others read them, on the CPU, from a folder such as a
    copy of the hub's `lllyasviel/Annotators`. Nothing is ever downloaded. Left to themselves the detectors scale a
    picture to sides that are multiples of 64, by another factor for width than for height, so that labels no longer
    fit; here the picture is extended by its mirror image to such sides, and the answer is cut back.
    """

    channels = 3

    def __init__(self, *, name: DetectorName, weights: Path | None = None) -> None:
        """
        Args:
            name: of the detector of controlnet-aux.
            weights: folder or file of its weights, where it has any.

        Raises:
            UserError: controlnet-aux is not installed; weights are missing, or given to a detector that has none.
        """
        self._name = name
        self._detector = _DETECTORS[name]
        if find_spec("controlnet_aux") is None:
            raise UserError(f"annotator {name}: the package controlnet-aux is not installed; {_INSTALL}")
        if weights is not None and not self._detector.files:
            raise UserError(f"annotator {name}: found weights {weights}, but it needs none; remove `weights:`")
        self._files = [] if weights is None else [weights / file for file in self._detector.files]
        missing = [file for file in self._detector.files if weights is None or not (weights / file).is_file()]
        if missing:
            raise UserError(
                f"annotator {name}: found no {', '.join(missing)} in `weights: {weights}`; give a folder that holds "
                "its weights, such as a copy of lllyasviel/Annotators from the hub"
            )

    @property
    def digest(self) -> str | None:
        """sha256 of the weights that this detector reads; None where there are none."""
        digests = [file_digest(file) for file in self._files]
        return sha256("\n".join(digests).encode()).hexdigest() if digests else None

    def draw(self, guide: Guide) -> Float32[np.ndarray, "3 height width"]:
        if guide.image is None:
            raise UserError(
                f"annotator {self._name} needs the picture that the labels were made for, and this guide has none; use "
                "a source with pictures, or a condition made from labels"
            )
        height, width = guide.size
        padded = np.pad(guide.image, ((0, -height % _STEP), (0, -width % _STEP), (0, 0)), mode="reflect")
        side = min(padded.shape[:2])  # the detectors scale the shorter side to it: by 1
        sizes = {"detect_resolution": side} | ({"image_resolution": side} if self._detector.rescales else {})
        with _own_chance(guide.image):
            found = self._loaded(padded, output_type="np", **sizes, **self._detector.arguments)
        if found.shape != padded.shape:
            raise RuntimeError(f"annotator {self._name}: an answer of shape {found.shape} to {padded.shape}")
        return np.ascontiguousarray(found[:height, :width].transpose(2, 0, 1), np.float32) / np.float32(255)

    @cached_property
    def _loaded(self) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # two dozen lines about what it imports itself, which no user can mend
                detector = getattr(import_module("controlnet_aux"), self._detector.class_name)
        except (ImportError, AttributeError) as error:  # AttributeError: what newer versions of mediapipe cause
            raise UserError(
                f"annotator {self._name}: controlnet-aux does not import ({error}); {_INSTALL}, and if mediapipe is "
                "installed, which it does not go with: pip uninstall mediapipe"
            ) from error
        return detector.from_pretrained(str(self._files[0].parent)) if self._files else detector()


@contextmanager
def _own_chance(image: UInt8[np.ndarray, "height width 3"]) -> Generator[None]:
    """Let what is drawn from NumPy's global generator, as shuffle does, depend on the picture alone."""
    before = np.random.get_state()  # noqa: NPY002 (it is the global one that the detectors use)
    np.random.seed(zlib.crc32(image.tobytes()))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
