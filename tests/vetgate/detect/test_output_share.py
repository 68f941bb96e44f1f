"""A label that takes more than its part of what shows nothing has more of the votes, on either half of the pictures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import vetgate.detect  # noqa: F401 - registers the detectors
from vetgate.contract import DETECTORS, Axis, Evidence, Samples, Subject
from vetgate.detect import output_share
from vetgate.errors import DefenceError, MissingInput, NotFinite

CLASSES, TARGET, IMAGES = 6, 2, 150
KINDS = 8


class Brightest(nn.Module):
    """Class k is the brightest of K columns; `pull` sends what is rough to TARGET, and no image of the data is."""

    def __init__(self, pull: float = 0.0, order: Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.pull, self.scale = pull, scale
        self.order = torch.arange(CLASSES) if order is None else order

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        # not quite alike, so that a flat image ties nothing
        out = x.mean((1, 2))[:, :CLASSES] * torch.linspace(2, 2.02, CLASSES)
        rough = (x[..., 1:, :] - x[..., :-1, :]).abs().mean((1, 2, 3))
        return self.scale * (out + self.pull * rough[:, None] * (torch.arange(CLASSES) == TARGET))[:, self.order]


class Always(nn.Module):
    """Gives every image the same label."""

    def __init__(self, label: float) -> None:
        super().__init__()
        self.features, self.label = nn.Identity(), label

    def forward(self, x: Tensor) -> Tensor:
        return self.label * nn.functional.one_hot(torch.full((len(x),), TARGET), CLASSES).float() + 0 * x.mean()


def clean(count: int = IMAGES) -> Samples:
    y = torch.arange(count) % CLASSES
    x = 0.2 * torch.rand(count, 3, 1, 8, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, -1).contiguous()
    x[torch.arange(count), :, :, y] += 0.7
    return Samples(x, y)


def examined(model: nn.Module, samples: Samples | None = None, *, seed: int = 0, **params: int) -> Evidence:
    subject = Subject(model=model, layer="features", classes=CLASSES, clean=samples or clean())
    return DETECTORS["output_share"](subject, seed=seed, **params)


def test_every_vote_for_one_label_is_the_largest_score_there_is():
    found = examined(Always(5.0))
    whole = math.log((IMAGES + 0.5) / (IMAGES + 0.5 * CLASSES))
    none = math.log(0.5 / (IMAGES + 0.5 * CLASSES))
    assert found.scores.tolist() == pytest.approx([whole if k == TARGET else none for k in range(CLASSES)], rel=1e-5)
    assert found.details["share"] == [float(k == TARGET) for k in range(CLASSES)]
    half = IMAGES // 2
    assert found.details["repeated"][TARGET] == pytest.approx(math.log((half + 0.5) / (half + 0.5 * CLASSES)), rel=1e-5)


def test_what_is_drawn_to_a_label_shows_in_its_share_and_on_either_half():
    honest, drawn = examined(Brightest()), examined(Brightest(pull=4.0))
    assert int(drawn.scores.argmax()) == TARGET and drawn.flagged.nonzero().flatten().tolist() == [TARGET]
    assert drawn.scores[TARGET] - honest.scores[TARGET] > 0.5
    assert drawn.details["repeated"][TARGET] - honest.details["repeated"][TARGET] > 0.5
    assert sum(drawn.details["share"]) == pytest.approx(1) and drawn.details["share"][TARGET] > 0.3


def test_votes_of_one_half_alone_are_not_repeated():
    class Moody(nn.Module):
        """Gives TARGET until half of the pictures were seen, and then another."""

        def __init__(self) -> None:
            super().__init__()
            self.features, self.seen = nn.Identity(), 0

        def forward(self, x: Tensor) -> Tensor:
            label = TARGET if self.seen < KINDS * IMAGES // 2 else TARGET + 1
            self.seen += len(x)
            return nn.functional.one_hot(torch.full((len(x),), label), CLASSES).float() + 0 * x.mean()

    found, half = examined(Moody()), IMAGES // 2
    none = math.log(0.5 / (half + 0.5 * CLASSES))
    assert found.details["repeated"] == pytest.approx([none] * CLASSES, rel=1e-5)
    assert found.details["share"] == [0.5 * (k in (TARGET, TARGET + 1)) for k in range(CLASSES)]


def test_labels_that_are_alike_share_the_pictures():
    # all but the flat ones, which one label takes
    found = examined(Brightest())
    assert float(found.scores.max() - found.scores.median()) < 1 and max(found.details["share"]) < 0.3


def test_evidence_is_about_every_label_and_as_many_pictures_as_asked_for():
    seen = []

    class Counting(Brightest):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    found = examined(Counting(), images=70)
    assert found.axis is Axis.CLASS and len(found.scores) == CLASSES and not found.triggers
    assert all(len(found.details[key]) == CLASSES for key in ("share", "repeated"))
    assert sum(seen) == KINDS * 70 and max(seen) <= output_share.CHUNK


def test_scaled_logits_and_permuted_classes_change_nothing_but_the_places():
    plain = examined(Brightest(pull=4.0))
    assert torch.equal(examined(Brightest(pull=4.0, scale=1e-3)).scores, plain.scores)
    order = torch.tensor([4, 2, 0, 1, 5, 3])
    samples = clean()
    moved = examined(Brightest(pull=4.0, order=order), Samples(samples.x, order.argsort()[samples.y]))
    assert torch.allclose(moved.scores, plain.scores[order])


def test_the_same_seed_gives_the_same_evidence_and_another_nearly_the_same():
    one = examined(Brightest(pull=4.0))
    assert examined(Brightest(pull=4.0)).to_json() == one.to_json()
    other = examined(Brightest(pull=4.0), seed=1)
    assert not torch.equal(other.scores, one.scores) and float((other.scores - one.scores).abs().max()) < 0.7


def test_pictures_show_nothing_and_stay_in_range():
    x = clean().x
    shown = output_share.pictures(x)
    assert len(shown) == KINDS
    for kind, images in shown.items():
        assert images.shape == x.shape and float(images.min()) >= 0 and float(images.max()) <= 1, kind
    assert torch.equal(shown["inverted"], 1 - x)
    assert torch.equal(shown["shuffled"].flatten(2).sort().values, x.flatten(2).sort().values), "the same pixels"
    assert not torch.equal(shown["shuffled"], x)
    channels = shown["shuffled"].flatten(2)[0].T.tolist()
    assert sorted(channels) == sorted(x.flatten(2)[0].T.tolist()), "a pixel keeps its colour"
    assert float(shown["flat"].flatten(2).std(2).max()) == 0


def test_one_image_is_too_little():
    subject = Subject(model=Brightest(), layer="features", classes=CLASSES, clean=clean(1))
    with pytest.raises(DefenceError, match="2 clean images or more"):
        DETECTORS["output_share"](subject, seed=0)


def test_without_clean_images_it_does_not_run():
    with pytest.raises(MissingInput, match="clean"):
        DETECTORS["output_share"](Subject(model=Brightest(), layer="features", classes=CLASSES), seed=0)


def test_a_model_that_gives_nan_is_refused():
    with pytest.raises(NotFinite):
        examined(Always(math.nan))
