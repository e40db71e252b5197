"""Puts a trained ControlNet into the package, in half precision: python -m datagen.pocket.ship models/control."""

import shutil
import sys
from pathlib import Path

from datagen.controls import ABOUT_FILE
from datagen.files import folder_bytes
from decoders.errors import UserError

PACKAGE = Path(__file__).parent
ROOM_MIB = 42
"""For the embedded model and its ControlNet together: what a package may weigh."""


def ship(control: Path, *, package: Path = PACKAGE) -> float:
    """Copy what `datagen control` wrote; its card stays as it is, to be brought up to date by hand.

    Returns:
        MiB of model and ControlNet together.

    Raises:
        UserError: there is no finished ControlNet, or both together would be too large; nothing is changed then.
    """
    if not (control / ABOUT_FILE).exists():
        raise UserError(f"{control} holds no ControlNet: {ABOUT_FILE} is missing; run `datagen control` to its end")
    import torch
    from diffusers import ControlNetModel

    new = package / "control.new"
    shutil.rmtree(new, ignore_errors=True)
    ControlNetModel.from_pretrained(control, torch_dtype=torch.float16).save_pretrained(new)
    shutil.copyfile(control / ABOUT_FILE, new / ABOUT_FILE)
    mib = sum(folder_bytes(folder) for folder in (package / "weights", new)) / 2**20
    if mib > ROOM_MIB:
        shutil.rmtree(new)
        raise UserError(f"model and ControlNet would weigh {mib:.1f} MiB, expected {ROOM_MIB} at most; train a smaller")
    for file in new.iterdir():
        file.replace(package / "control" / file.name)
    new.rmdir()
    return mib


def main() -> None:
    try:
        print(f"model and ControlNet: {ship(Path(sys.argv[1])):.1f} MiB")
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
