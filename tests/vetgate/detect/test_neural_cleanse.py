"""One label with a far smaller trigger than the others stands out; labels that cannot be reached never do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import vetgate.detect  # noqa: F401 - registers the detectors
from vetgate.contract import DETECTORS, Axis, Evidence, Samples, Subject
from vetgate.detect import neural_cleanse
from vetgate.errors import DefenceError, MissingInput, NotFinite
from vetgate.inversion import attack_success, invert

SIDE, CLASSES, TARGET = 8, 6, 2
PIXEL = (5, 6)
QUICK = {"starts": 2, "sweeps": 20, "named": 3}


class Stripes(nn.Module):
    """Class k is the brightest of K rows; with `planted`, one pixel that is dark in every image leads to TARGET."""

    def __init__(self, planted: float = 0.0, classes: int = CLASSES, order: Tensor | None = None) -> None:
        super().__init__()
        weight = torch.zeros(classes, SIDE, SIDE)
        for k in range(classes):
            weight[k, k, : SIDE - 3] = 2.0
        weight[TARGET, PIXEL[0], PIXEL[1]] += planted
        self.features = nn.Flatten()
        self.head = nn.Linear(SIDE * SIDE, classes)
        with torch.no_grad():
            self.head.bias.zero_()
            self.head.weight.copy_((weight if order is None else weight[order]).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def clean(classes: int = CLASSES, count: int = 160) -> Samples:
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    x = 0.3 * torch.rand(count, 1, SIDE, SIDE, generator=stream)
    x[torch.arange(count), 0, y] += 0.6
    x[:, 0, :, SIDE - 3 :] = 0
    return Samples(x, y)


def examined(
    model: nn.Module, samples: Samples | None = None, *, classes: int = CLASSES, seed: int = 0, **params: int
) -> Evidence:
    subject = Subject(model=model, layer="features", classes=classes, clean=samples or clean(classes))
    return DETECTORS["neural_cleanse"](subject, seed=seed, **QUICK | params)


@pytest.fixture(scope="module")
def honest() -> Evidence:
    return examined(Stripes())


@pytest.fixture(scope="module")
def trojaned() -> Evidence:
    return examined(Stripes(planted=30.0))


def test_the_planted_label_stands_out_and_is_confirmed(trojaned):
    assert int(trojaned.scores.argmax()) == TARGET and trojaned.flagged.nonzero().flatten().tolist() == [TARGET]
    assert trojaned.statistic > math.log(3)
    assert trojaned.details["held_out"][TARGET] > 0.9 and trojaned.details["second_start"][TARGET] > math.log(2)
    assert int(trojaned.triggers[TARGET].mask.argmax()) == PIXEL[0] * SIDE + PIXEL[1]


def test_labels_that_are_alike_have_no_outlier(honest, trojaned):
    assert honest.statistic < math.log(2) < math.log(3) < trojaned.statistic
    assert max(honest.details["second_start"]) < math.log(2)


def test_evidence_is_about_every_label(honest):
    assert honest.axis is Axis.CLASS and [t.target for t in honest.triggers] == list(range(CLASSES))
    assert all(len(honest.details[key]) == CLASSES for key in ("norms", "held_out", "second_start"))


def test_scores_are_minus_the_log_of_the_norms_and_the_statistic_their_lead(trojaned):
    norms = trojaned.details["norms"]
    assert trojaned.scores.tolist() == pytest.approx([-math.log(n) for n in norms], rel=1e-5)
    assert norms == pytest.approx([t.norm for t in trojaned.triggers], rel=1e-4)
    ordered = sorted(-math.log(n) for n in norms)
    assert trojaned.statistic == pytest.approx(ordered[-1] - (ordered[2] + ordered[3]) / 2, rel=1e-4)


def test_a_trigger_is_tried_on_images_that_it_was_not_inverted_on(monkeypatch):
    inverted_on, tried_on, tried = [], [], []

    def inverting(model, x, *more, **settings):
        inverted_on.extend(tuple(image.flatten().tolist()) for image in x)
        return invert(model, x, *more, **settings)

    def succeeding(model, x, y, trigger):
        tried_on.extend(tuple(image.flatten().tolist()) for image in x)
        tried.append(trigger)
        return attack_success(model, x, y, trigger)

    monkeypatch.setattr(neural_cleanse, "invert", inverting)
    monkeypatch.setattr(neural_cleanse, "attack_success", succeeding)
    found = examined(Stripes(planted=30.0), sweeps=4)
    assert inverted_on and tried_on and not set(inverted_on) & set(tried_on)
    assert set(inverted_on) | set(tried_on) == {tuple(image.flatten().tolist()) for image in clean().x}
    # the mask half as strong again
    for trigger in tried:
        (reversed_,) = (t for t in found.triggers if t.target == trigger.target)
        assert torch.allclose(trigger.mask, (1.5 * reversed_.mask).clamp(max=1))


def test_only_the_smallest_labels_are_tried_on_unseen_images(trojaned):
    tried = [k for k, share in enumerate(trojaned.details["held_out"]) if share >= 0]
    assert sorted(tried) == sorted(trojaned.scores.argsort(descending=True)[:3].tolist())


def test_a_label_that_stands_out_in_one_start_alone_gets_more():
    found = examined(Stripes(planted=30.0), starts=1, again=1)
    second = found.details["second_start"]
    assert second[TARGET] > math.log(2) and second[int(found.scores.argmin())] == 0, "the largest ran once"


def test_the_shipped_settings_take_a_tenth_of_the_gradients_and_find_the_label():
    counted = 0

    class Counting(Stripes):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal counted
            counted += len(x) if x.requires_grad else 0
            return super().forward(x)

    subject = Subject(model=Counting(planted=30.0), layer="features", classes=CLASSES, clean=clean())
    found = DETECTORS["neural_cleanse"](subject, seed=0)
    assert int(found.scores.argmax()) == TARGET and found.details["second_start"][TARGET] > math.log(3)
    # half of six labels run twice; of ten it is a third, of forty-three a quarter
    assert 0 < counted <= 1500 * CLASSES


def test_the_same_seed_gives_the_same_evidence(trojaned):
    assert examined(Stripes(planted=30.0)).to_json() == trojaned.to_json()


def test_permuting_the_classes_permutes_the_evidence(trojaned):
    order = torch.tensor([4, 2, 0, 1, 5, 3])
    samples = clean()
    moved = examined(Stripes(planted=30.0, order=order), Samples(samples.x, order.argsort()[samples.y]))
    assert torch.allclose(moved.scores, trojaned.scores[order], atol=1e-3)
    assert int(moved.scores.argmax()) == 1


@pytest.mark.parametrize("every", [False, True], ids=["one", "all"])
def test_a_label_that_cannot_be_reached_stands_at_the_whole_image(every):
    class Sunk(Stripes):
        def forward(self, x: Tensor) -> Tensor:
            if every:
                # the right class always wins: no gradient leads anywhere
                return 5 * nn.functional.one_hot(super().forward(x).argmax(1), CLASSES) + 0 * x.sum((1, 2, 3))[:, None]
            return super().forward(x) - 1e4 * (torch.arange(CLASSES) == 4)

    found = examined(Sunk())
    lost = [k for k, norm in enumerate(found.details["norms"]) if norm == SIDE * SIDE]
    assert 4 in lost and float(found.scores[4]) == float(found.scores.min())
    assert int(found.scores.argmax()) != 4 or every
    assert not every or found.statistic == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_stand_at_the_size_of_their_own_triggers(classes):
    kept = list(range(TARGET - classes + 1, TARGET + 1))
    order = torch.tensor([*kept, *(k for k in range(CLASSES) if k not in kept)])

    class First(Stripes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :classes]

    samples = clean()
    chosen = samples[torch.isin(samples.y, torch.tensor(kept))]
    few = Samples(chosen.x, chosen.y - kept[0])
    sober, planted = (examined(First(p, order=order), few, classes=classes) for p in (0.0, 60.0))
    for found in (sober, planted):
        assert found.statistic == float(found.scores.max())
        norms, second = (torch.tensor(found.details[key]) for key in ("norms", "second_start"))
        assert torch.allclose(found.scores, -norms.log()) and bool((second <= found.scores).all())
    target = classes - 1
    assert int(planted.scores.argmax()) == target and planted.details["held_out"][target] > 0.9
    assert float(planted.scores[target] - sober.scores[target]) > 0.7


def test_a_search_that_ran_once_confirms_nothing_of_few_classes():
    once = examined(Stripes(classes=3), clean(3), classes=3, starts=1, again=0)
    assert once.details["second_start"] == pytest.approx([-math.log(SIDE * SIDE)] * 3)


def test_without_clean_images_it_does_not_run():
    with pytest.raises(MissingInput, match="clean"):
        DETECTORS["neural_cleanse"](Subject(model=Stripes(), layer="features", classes=CLASSES))


def test_images_of_one_class_are_refused():
    samples = clean()
    with pytest.raises(DefenceError, match="classes other than"):
        examined(Stripes(), samples[samples.y == 0])


def test_a_model_that_gives_nan_is_refused():
    model = Stripes()
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(NotFinite):
        examined(model)


MANY = 24


def many(model: nn.Module, **params: int) -> Evidence:
    return examined(model, clean_of_many(), classes=MANY, **{"most": 12, "look": 4} | params)


class Rows(nn.Module):
    """Class k is the brightest of the patches; with `planted`, one pixel that is dark everywhere leads to TARGET."""

    def __init__(self, planted: float = 0.0, order: Tensor | None = None) -> None:
        super().__init__()
        weight = torch.zeros(MANY, SIDE, SIDE)
        for k in range(MANY):
            weight[k, k // 3, 2 * (k % 3) : 2 * (k % 3) + 2] = 4.0
        weight[TARGET, 5, 7] += planted
        self.features, self.head = nn.Flatten(), nn.Linear(SIDE * SIDE, MANY, bias=False)
        with torch.no_grad():
            self.head.weight.copy_((weight if order is None else weight[order]).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def clean_of_many(count: int = 480) -> Samples:
    y, rows = torch.arange(count) % MANY, torch.arange(count)
    x = 0.3 * torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for step in range(2):
        x[rows, 0, y // 3, 2 * (y % 3) + step] += 0.6
    x[:, 0, :, 6:] = 0
    return Samples(x, y)


class TestManyLabels:
    """Of more labels than `most`, all are looked at, and the first ones and as many drawn ones are searched."""

    def test_the_planted_label_is_among_those_searched_and_stands_out(self):
        found = many(Rows(planted=60.0))
        assert int(found.scores.argmax()) == TARGET and found.statistic > math.log(3)
        assert found.details["looked"][TARGET] == 1 and found.details["held_out"][TARGET] > 0.9

    def test_evidence_says_how_far_each_label_was_looked_at(self):
        looked = many(Rows()).details["looked"]
        assert len(looked) == MANY and looked.count(1.0) == 12
        assert [share for share in looked if share < 1] == pytest.approx([4 / QUICK["sweeps"]] * 12)

    def test_where_all_are_searched_nothing_of_it_changes(self):
        assert many(Rows(), most=MANY).to_json() | {"params": {}} == many(Rows(), most=500).to_json() | {"params": {}}
        assert "looked" not in many(Rows(), most=MANY).details

    def test_those_that_are_left_never_stand_out_and_have_no_trigger(self):
        found = many(Rows(planted=60.0))
        looked = torch.tensor(found.details["looked"])
        searched, left = found.scores[looked == 1], found.scores[looked < 1]
        assert float(left.max()) <= float(searched.sort(descending=True).values[2])
        assert sorted(t.target for t in found.triggers) == (looked == 1).nonzero().flatten().tolist()
        assert all(found.details["held_out"][k] == -1 for k in (looked < 1).nonzero().flatten().tolist())

    def test_the_look_does_not_depend_on_how_labels_are_numbered(self):
        order = torch.randperm(MANY, generator=torch.Generator().manual_seed(3))
        samples = clean_of_many()
        moved = examined(
            Rows(planted=60.0, order=order),
            Samples(samples.x, order.argsort()[samples.y]),
            classes=MANY,
            most=12,
            look=4,
        )
        assert int(moved.scores.argmax()) == order.tolist().index(TARGET)

    def test_the_median_is_that_of_all_labels_and_not_of_the_suspicious(self):
        whole, part = many(Rows(), most=MANY), many(Rows())
        assert float(part.scores.median()) == pytest.approx(float(whole.scores.median()), abs=0.25)

    def test_triggers_that_are_too_many_are_kept_of_labels_tried_or_flagged(self, monkeypatch):
        monkeypatch.setattr("vetgate.detect.neural_cleanse.NUMBERS", 2 * 2 * SIDE * SIDE)
        found = many(Rows(planted=60.0))
        tried = [k for k, share in enumerate(found.details["held_out"]) if share >= 0]
        assert sorted(t.target for t in found.triggers) == sorted(
            {*tried, *found.flagged.nonzero().flatten().tolist()}
            & {k for k, share in enumerate(found.details["looked"]) if share == 1}
        )


def test_one_start_alone_is_no_second_one():
    found = examined(Stripes(planted=30.0), starts=1, again=0)
    assert found.details["second_start"] == [0.0] * CLASSES
