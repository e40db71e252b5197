"""What labels cost: labelled pictures per second, and peak memory, against the plain diffusers pipeline.

    python -m benchmarks.generation_rate [--plan configs/demo.yaml] [--reader runs/demo/reader] [--rounds 5]

Both sides draw the same recipes with the same model, steps and batch; ours also reads the labels, judges the samples
and commits the shard. Rates alternate in one process, the median ratio of the rounds counts; memory is the peak of a
process of its own for each side. Cost on two cores: 5 rounds x 2 x 16 pictures, about 3 minutes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import clock
from datagen.factory import Factory
from datagen.plan import GeneratePlan, Parts, build_parts, load_plan
from datagen.shards import ShardStore

PICTURES = 16


def draw_plainly(plan: GeneratePlan, parts: Parts) -> None:
    """The pipeline as its documentation shows it, with the plan's steps, guidance and size."""
    settings = plan.generator.to_json()
    assert parts.model is not None
    for start in range(0, PICTURES, plan.batch_size):
        recipes = [parts.source.recipe(index) for index in range(start, start + plan.batch_size)]
        parts.model.checkpoint.pipeline(
            prompt=[recipe.prompt for recipe in recipes],
            generator=[torch.Generator().manual_seed(recipe.seed) for recipe in recipes],
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance"],
            height=settings["height"],
            width=settings["width"],
        )


def make_labelled(plan: GeneratePlan, parts: Parts) -> None:
    """Two shards by the factory, from recipe to disk."""
    with tempfile.TemporaryDirectory() as folder:
        factory = Factory(
            source=parts.source,
            generator=parts.generator,
            labeller=parts.labeller,
            filters=parts.filters,
            store=ShardStore(Path(folder)),
            target=10**6,
            shard_size=plan.batch_size,
            batch_size=plan.batch_size,
        )
        shards = factory.run()
        for _ in range(PICTURES // plan.batch_size):
            next(shards)


SIDES = {"plain": draw_plainly, "labelled": make_labelled}


def seconds(side: str, plan: GeneratePlan, parts: Parts) -> float:
    return clock.seconds(lambda: SIDES[side](plan, parts))


def peak_mib(side: str, arguments: list[str]) -> float:
    command = [sys.executable, "-m", "benchmarks.generation_rate", *arguments, "--only", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default="configs/demo.yaml")
    parser.add_argument("--reader", default="runs/demo/reader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(SIDES), help="one side once; prints its peak memory in MiB")
    chosen = parser.parse_args()
    plan = load_plan(Path(chosen.plan), [f"labeller.reader={chosen.reader}"])
    torch.set_num_threads(plan.threads)
    parts = build_parts(plan)
    if chosen.only:
        SIDES[chosen.only](plan, parts)
        print(1024 * clock.peak_gib())
        return
    for side in SIDES:  # once each, not counted: loads what is loaded lazily
        seconds(side, plan, parts)
    ratios = [seconds("plain", plan, parts) / seconds("labelled", plan, parts) for _ in range(chosen.rounds)]
    memory = {side: peak_mib(side, ["--plan", chosen.plan, "--reader", chosen.reader]) for side in SIDES}
    found = {
        "rate_ratio": statistics.median(ratios),
        "rate_ratios": ratios,
        "peak_mib": memory,
        "memory_ratio": memory["labelled"] / memory["plain"],
        "pictures": PICTURES,
        "batch_size": plan.batch_size,
        "threads": plan.threads,
    }
    clock.keep("generation_rate", found)
    print(f"labelled pictures per second / plain: {found['rate_ratio']:.2f} (aim 0.90)")
    print(f"peak memory labelled / plain: {found['memory_ratio']:.2f} (aim 1.10)")


if __name__ == "__main__":
    main()
