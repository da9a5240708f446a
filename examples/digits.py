"""Train a model of the zoo on scikit-learn's handwritten digits, in about a minute on two cores.

    python examples/digits.py --out demo-output

The 1797 images of 8 x 8 grey levels that scikit-learn carries are enlarged to 64 x 64 RGB. A fixed quarter of each
class is held out. Afterwards the folder holds

    digits.pt              the state dict of shvit_s1 with ten classes
    held-out/<digit>/      the held-out images as PNG files, one folder a class
    labels.txt             class names in the order of the outputs

The accuracy printed at the end is that of the saved checkpoint on the saved images, read in the same way as
`mobilec validate --data` reads them. Exit code 1 when it is below 95 %.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import mobilec
from mobilec.mobile.preprocessing import Preprocessing, load_image, normalise

MODEL = "shvit_s1"
SIZE = 64  # pixels; the smallest input that every model of the zoo takes
CLASSES = 10
HELD_OUT = 0.25
BATCH = 64
REQUIRED_ACCURACY = 0.95
WHOLE_IMAGE = Preprocessing(crop_pct=1.0)  # digits fill their image: no border to crop


def enlarge(grey: np.ndarray) -> Image.Image:
    """An 8 x 8 image of levels 0..16 as 64 x 64 RGB."""
    levels = np.round(grey * (255 / 16)).astype(np.uint8)
    return Image.fromarray(levels).resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


def shifted(images: Tensor, generator: torch.Generator, most: int = 4) -> Tensor:
    """Each batch moved by up to ``most`` pixels in each direction, the border repeated."""
    padded = nn.functional.pad(images, (most,) * 4, mode="replicate")
    top, left = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    return padded[..., top : top + SIZE, left : left + SIZE]


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, seed: int) -> None:
    """Fit in place; one line an epoch."""
    generator = torch.Generator().manual_seed(seed)
    batches = len(images) // BATCH  # the few images left over would make a poor batch for batch norm
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=epochs * batches)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    model.train()
    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(images), generator=generator)
        losses, right = 0.0, 0
        for batch in order[: batches * BATCH].view(batches, BATCH):
            logits = model(shifted(images[batch], generator))
            loss = loss_of(logits, labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses += loss.item()
            right += int((logits.argmax(1) == labels[batch]).sum())
        print(
            f"epoch {epoch:2d}/{epochs}  loss {losses / batches:.3f}  "
            f"training accuracy {100 * right / (batches * BATCH):5.1f} %  {time.perf_counter() - start:4.0f} s",
            flush=True,
        )
    model.eval()


def save_held_out(images: list[Image.Image], labels: np.ndarray, folder: Path) -> list[tuple[Path, int]]:
    """One PNG an image in a folder a class; images of an earlier run are removed. Returns paths with their class."""
    for old in folder.glob("[0-9]/digit-*.png"):
        old.unlink()
    saved = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"digit-{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        saved.append((path, int(label)))
    return saved


def save_checkpoint(model: nn.Module, path: Path) -> None:
    """The state dict, whole or not at all."""
    aside = path.with_name(path.name + ".part")
    torch.save(model.state_dict(), aside)
    os.replace(aside, path)


@torch.no_grad()
def accuracy(checkpoint: Path, files: list[tuple[Path, int]]) -> float:
    """Top-1 share of the saved checkpoint on the saved images."""
    model = mobilec.create_model(MODEL, checkpoint=checkpoint, num_classes=CLASSES)
    images = np.stack([load_image(path, (SIZE, SIZE), WHOLE_IMAGE) for path, _ in files])  # [N, 3, 64, 64]
    guesses = torch.cat([model(batch).argmax(1) for batch in torch.from_numpy(images).split(BATCH)])
    return float((guesses == torch.tensor([label for _, label in files])).double().mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")

    torch.manual_seed(options.seed)
    if "OMP_NUM_THREADS" not in os.environ:  # torch alone would count the cores of the machine, not ours
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    digits = load_digits()
    pictures = [enlarge(grey) for grey in digits.images]
    chosen, held_out = train_test_split(
        np.arange(len(pictures)), test_size=HELD_OUT, stratify=digits.target, random_state=options.seed
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(CLASSES)))
    files = save_held_out([pictures[i] for i in held_out], digits.target[held_out], options.out / "held-out")
    print(f"{len(chosen)} images to train on, {len(held_out)} held out in {options.out / 'held-out'}/")

    pixels = np.stack([np.asarray(pictures[i]) for i in chosen])  # [N, 64, 64, 3]
    images = torch.from_numpy(normalise(pixels, WHOLE_IMAGE))  # [N, 3, 64, 64]
    model = mobilec.create_model(MODEL, num_classes=CLASSES, seed=options.seed)
    train(model, images, torch.from_numpy(digits.target[chosen]), epochs=options.epochs, seed=options.seed)
    checkpoint = options.out / "digits.pt"
    save_checkpoint(model, checkpoint)

    share = accuracy(checkpoint, files)
    print(f"saved {checkpoint}; accuracy on the {len(files)} held-out images: {100 * share:.2f} %")
    if share < REQUIRED_ACCURACY:
        print(f"error: below the required {100 * REQUIRED_ACCURACY:.0f} %; train longer (--epochs)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
