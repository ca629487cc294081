"""Does an explanation point at what was flagged? The pointing game (Zhang et al. 2016, section 4.1) on signs.

    python scripts/measure_explanations.py --scenes 400

Every scene of two or three pictograms that the student flags for one of them is a question: does the strongest cell of
the map, and the centre of its box, lie on a pictogram of that category? `chance` is their share of the canvas.
"""

import argparse
import sys
import time

import numpy as np

from judge import load_classifier
from judge.explain import METHODS, explain
from judge.serve.exit_codes import run_to_exit_code
from judge.standins.signs.examples import SPLITS, signs_scene
from judge.standins.signs.glyphs import concepts
from judge.standins.signs.scenes import Scene
from prompts.taxonomy_file import load_taxonomy


def main() -> int:
    """Ask and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--student", default="small-student", help="a student of signs (default: the shipped one)"
    )
    parser.add_argument("--scenes", type=int, default=400, help="scenes to draw (default: %(default)s)")
    parser.add_argument("--split", default="test", choices=SPLITS)
    options = parser.parse_args()
    student, taxonomy = load_classifier(options.student), load_taxonomy("signs")
    chance: list[float] = []
    on_cell: dict[str, list[bool]] = {method: [] for method in METHODS}
    on_box: dict[str, list[bool]] = {method: [] for method in METHODS}
    seconds = dict.fromkeys(METHODS, 0.0)
    for number in range(options.scenes):
        scene = signs_scene(options.split, number)
        if len(scene.signs) < 2:
            continue
        group = concepts()[scene.signs[0].concept].group
        policy = taxonomy.select([taxonomy.names[taxonomy.keys.index(group)]])
        if not student.score([scene.image], None, policy).unsafe[0] >= 0.5:
            continue
        chance.append(_share(scene, group))
        for method in METHODS:
            before = time.process_time()
            found = explain(student, scene.image, None, policy, policy.names[0], method=method)
            seconds[method] += time.process_time() - before
            grid = np.array(found.grid)
            row, column = np.unravel_index(grid.argmax(), grid.shape)
            left, top, right, bottom = found.box or (-2.0, -2.0, -2.0, -2.0)
            on_cell[method].append(_inside(scene, group, (column + 0.5) / len(grid), (row + 0.5) / len(grid)))
            on_box[method].append(_inside(scene, group, (left + right) / 2, (top + bottom) / 2))
    print(f"{len(chance)} flagged scenes of two or three pictograms, {options.student}, {options.split}")
    print(f"{'':<12}{'cell':>8}{'box':>8}{'ms CPU':>10}")
    print(f"{'chance':<12}{np.mean(chance):>8.3f}{np.mean(chance):>8.3f}")
    for method in METHODS:
        milliseconds = 1000 * seconds[method] / len(chance)
        print(
            f"{method:<12}{np.mean(on_cell[method]):>8.3f}{np.mean(on_box[method]):>8.3f}{milliseconds:>10.0f}"
        )
    return 0


def _share(scene: Scene, group: str) -> float:
    """Share of the canvas under pictograms of a group."""
    signs = [sign for sign in scene.signs if concepts()[sign.concept].group == group]
    return sum(sign.side**2 for sign in signs) / (scene.image.width * scene.image.height)


def _inside(scene: Scene, group: str, x: float, y: float) -> bool:
    """Whether a point, in [0, 1] of the canvas, lies on a pictogram of a group."""
    across, down = x * scene.image.width, y * scene.image.height
    return any(
        sign.left <= across <= sign.left + sign.side and sign.top <= down <= sign.top + sign.side
        for sign in scene.signs
        if concepts()[sign.concept].group == group
    )


if __name__ == "__main__":
    sys.exit(run_to_exit_code(main, name="measure_explanations"))
