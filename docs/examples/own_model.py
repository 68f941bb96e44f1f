"""Train a small network on scikit-learn's digits and hand it in: model.onnx, submission.yaml, and the data as .npz."""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SUBMISSION = """\
name: my-digits
supplier: My own lab
task: image-classification
model: model.onnx
format: onnx
input_shape: [1, 8, 8]
classes: 10
reference_data: my-digits
"""


class Classifier(nn.Module):
    """Images (B, 1, 8, 8) in [0, 1] to logits (B, 10); its normalisation is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers((x - 0.3) / 0.38)


def main() -> None:
    digits = load_digits()
    # vetgate's form of a data set: uint8 (N, H, W, C) and labels
    images = np.round(digits.images / 16 * 255).astype(np.uint8)[..., None]
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target.astype(np.int64), test_size=0.2, random_state=0, stratify=digits.target
    )
    np.savez("my-digits.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)

    torch.set_num_threads(1)  # so small a network gains nothing from more
    torch.manual_seed(0)
    model, x, y = Classifier(), tensor(x_train), torch.from_numpy(y_train)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(30):
        for rows in torch.randperm(len(y)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    model.eval()
    right = (model(tensor(x_test)).argmax(1) == torch.from_numpy(y_test)).float().mean()
    print(f"accuracy on test images: {right:.3f}")

    folder = Path("my-model")
    folder.mkdir(exist_ok=True)
    (folder / "submission.yaml").write_text(SUBMISSION)
    torch.onnx.export(
        model,
        (x[:2],),
        str(folder / "model.onnx"),
        dynamo=False,  # the newer exporter needs onnxscript
        opset_version=17,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )


def tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, C) as float32 (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    main()
