"""A planted trigger is found where it is, whatever the scale or the order of the logits; what has none looks large."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from vetgate.contract import Trigger
from vetgate.errors import DefenceError, NotFinite
from vetgate.inversion import Inverted, Schedule, attack_success, invert, logit_scale
from vetgate.replay import Computed, Missing, Replay, replaying
from vetgate.search import Course, Search, drop_settled, move_weights

SIDE, CLASSES, TARGET = 8, 6, 2
ROW, COLUMN = 5, 6


class Stripes(nn.Module):
    """Class k is the brightest of six rows; with `planted`, one pixel that is dark in every image leads to TARGET."""

    def __init__(self, planted: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, CLASSES, SIDE, bias=True)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.zero_()
            for k in range(CLASSES):
                # no two labels are alike: which of them the race drops must not hang on rounding
                self.layer.weight[k, 0, k, : SIDE - 3] = 2.0 + 0.3 * k
            self.layer.weight[TARGET, 0, ROW, COLUMN] += planted

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).flatten(1)


class Rewired(nn.Module):
    """Another's logits, reordered and scaled."""

    def __init__(self, inner: nn.Module, order: Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        self.order = torch.arange(CLASSES) if order is None else order

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[:, self.order] * self.scale


def images(count: int = 120) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(count) % CLASSES
    x = 0.3 * torch.rand(count, 1, SIDE, SIDE, generator=stream)
    x[torch.arange(count), 0, y] += 0.6
    x[:, 0, :, SIDE - 3 :] = 0
    return x, y


def inverted(model: nn.Module, *, targets: range | list[int] = range(CLASSES), seed: int = 0, **plan) -> Inverted:
    x, y = images()
    torch.manual_seed(seed)
    return invert(model.eval().requires_grad_(False), x, y, list(targets), **{"sweeps": 30, **plan})


def search(model: nn.Module, sweeps: int = 150, **plan) -> tuple[Search, Course]:
    """A search, and the course of every label at its beginning."""
    given = {"scale": 1.0, "sweep": 4, "batch": 32, "lr": 0.1, "settle": 15}
    run = Search(model.requires_grad_(False), *images(), seed=0, sweeps=sweeps, plan=Schedule(**plan), **given)
    return run, Course.begin(range(CLASSES), run.start)


def replayed(model: nn.Module, **plan) -> tuple[Inverted, list[set[str]]]:
    """The inversion with every block computed in a run of its own, and which blocks each asking wanted."""
    done, blocks, asked = [], {}, []
    while True:
        with replaying(Replay(done, json.loads(json.dumps(blocks)))) as replay:
            try:
                return inverted(model, **plan), asked
            except Missing as missing:
                needs = missing.needs
        done += replay.fresh
        asked.append(set(needs))
        for name, start in reversed(needs.items()):
            with replaying(Replay(done, only=name, start=start)), pytest.raises(Computed) as computed:
                inverted(model, **plan)
            blocks[name] = computed.value.block


def test_the_planted_pixel_is_found_and_only_its_label_has_a_small_mask():
    found = inverted(Stripes(planted=30.0))
    mask = found.triggers[TARGET].mask[0]
    assert int(mask.argmax()) == ROW * SIDE + COLUMN and float(mask.max()) > 0.2
    assert int(found.norms.argmin()) == TARGET
    assert float(found.norms[TARGET]) < 0.3 * float(found.norms.median())
    assert [t.target for t in found.triggers] == list(range(CLASSES))


def test_a_trigger_works_on_images_of_other_classes():
    model = Stripes(planted=30.0).eval()
    assert attack_success(model, *images(), inverted(model).triggers[TARGET]) > 0.9


def test_norms_are_those_of_the_masks_and_everything_lies_between_0_and_1():
    found = inverted(Stripes(planted=30.0))
    assert found.norms.tolist() == pytest.approx([t.norm for t in found.triggers], rel=1e-5)
    assert all(float(v.min()) >= 0 and float(v.max()) <= 1 for t in found.triggers for v in (t.mask, t.pattern))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    first, again, other = (inverted(Stripes(planted=30.0), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.norms, again.norms) and torch.equal(first.success, again.success)
    assert all(torch.equal(a.pattern, b.pattern) for a, b in zip(first.triggers, again.triggers, strict=True))
    assert not torch.equal(first.norms, other.norms)


@pytest.mark.parametrize("scale", [8.0, 10.0, 0.001])
def test_scaling_the_logits_changes_no_trigger(scale):
    plain, scaled = inverted(Stripes(planted=30.0)), inverted(Rewired(Stripes(planted=30.0), scale=scale))
    # a power of two changes no bit of a quotient; others round
    assert torch.allclose(plain.norms, scaled.norms, atol=0 if scale == 8.0 else 1e-4)


def test_permuting_the_classes_permutes_the_triggers():
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    plain = inverted(Stripes(planted=30.0))
    x, y = images()
    rewired = Rewired(Stripes(planted=30.0).eval().requires_grad_(False), order)
    torch.manual_seed(0)
    moved = invert(rewired, x, order.argsort()[y], list(range(CLASSES)), sweeps=30)
    assert torch.allclose(moved.norms, plain.norms[order], atol=1e-4)
    for k, before in enumerate(order.tolist()):
        assert torch.allclose(moved.triggers[k].mask, plain.triggers[before].mask, atol=1e-4)


def test_labels_may_be_inverted_alone_and_in_any_order():
    together, alone = inverted(Stripes(planted=30.0)), inverted(Stripes(planted=30.0), targets=[TARGET])
    assert [t.target for t in alone.triggers] == [TARGET]
    # alone, no race stops it early: it may end smaller
    assert float(alone.norms[0]) <= float(together.norms[TARGET]) + 0.1
    assert [t.target for t in inverted(Stripes(), targets=[4, 1], sweeps=2).triggers] == [4, 1]


def test_the_model_is_left_as_it_was():
    model = Stripes(planted=30.0).eval().requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inverted(model, sweeps=3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.layer.weight.grad is None and model.layer.weight.is_contiguous()


def test_images_of_the_target_class_do_not_count_as_success():
    model = Stripes().eval()
    x, y = images()
    nothing = Trigger(torch.zeros(1, SIDE, SIDE), torch.zeros(1, SIDE, SIDE), TARGET)
    assert attack_success(model, x, y, nothing) == 0.0
    mostly = torch.cat([torch.nonzero(y == TARGET).flatten().repeat(20), torch.nonzero(y != TARGET).flatten()[:20]])
    torch.manual_seed(0)
    plan = {"sweeps": 3, "lr": 1e-6}
    idle = invert(Rewired(model.requires_grad_(False)), x[mostly], y[mostly], [TARGET], **plan)
    # over all images, nineteen in twenty of which show the target anyway, it would be 0.95
    assert float(idle.success[0]) < 0.6


def test_a_label_that_cannot_be_reached_never_succeeds():
    model = Stripes()
    with torch.no_grad():
        model.layer.bias[4] = -1e4
    found = inverted(model, sweeps=10)
    assert float(found.success[4]) == 0.0 and float(found.success[TARGET]) > 0.9


def test_fewer_images_than_a_batch_will_do():
    x, y = images(5)
    torch.manual_seed(0)
    found = invert(Stripes(planted=30.0).eval().requires_grad_(False), x, y, [TARGET], sweeps=20, batch=32)
    assert float(found.success[0]) > 0.9


@pytest.mark.parametrize("call", ["invert", "attack_success"])
def test_images_of_the_target_class_alone_are_refused(call):
    x, y = images()
    x, y, model = x[y == TARGET], y[y == TARGET], Stripes().eval().requires_grad_(False)
    trigger = Trigger(torch.ones(1, SIDE, SIDE), torch.ones(1, SIDE, SIDE), TARGET)
    with pytest.raises(DefenceError, match=f"classes other than {TARGET}"):
        invert(model, x, y, [0, TARGET]) if call == "invert" else attack_success(model, x, y, trigger)


def test_a_model_that_gives_nan_is_refused():
    model = Stripes()
    with torch.no_grad():
        model.layer.bias[0] = torch.nan
    with pytest.raises(NotFinite):
        inverted(model)


def test_a_model_that_gives_nan_only_once_images_are_stamped_is_refused():
    class Trap(Stripes):
        def forward(self, x: Tensor) -> Tensor:
            # no clean image is bright there
            lit = x[:, 0, :, SIDE - 3 :].amax((1, 2))
            return super().forward(x) + torch.where(lit > 0.05, torch.nan, 0.0)[:, None]

    with pytest.raises(NotFinite, match="inversion met NaN"):
        inverted(Trap())


def test_a_model_without_an_opinion_is_refused():
    class Mute(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), CLASSES)

    with pytest.raises(DefenceError, match="same logit"):
        logit_scale(Mute(), images()[0])


class Outlying(Stripes):
    """The same predictions; two of the labels that are not said have logits far out on every image."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        said = out.argmax(1, keepdim=True)
        labels = torch.arange(CLASSES)[None]
        return out - 1e4 * (((labels - said) % CLASSES == 1) | ((labels - said) % CLASSES == 3))


def test_logits_that_lie_far_out_on_every_image_are_not_the_unit():
    x, _ = images()
    plain = logit_scale(Stripes(), x)
    # of an ordinary model it is the spread
    assert plain == pytest.approx(float(Stripes()(x).detach().std(1).double().quantile(0.5)))
    assert float(Outlying()(x).detach().std(1).median()) > 500 * plain
    assert logit_scale(Outlying(), x) < 5 * plain


def weights_after(states: list[bool], **plan) -> tuple[list[float], Course]:
    """The cost weight of the first label after each sweep that ended so, and the course."""
    run, course = search(Stripes(), **plan)
    seen = []
    for good in states:
        move_weights(course, torch.arange(CLASSES), torch.full((CLASSES,), good), run.plan)
        seen.append(float(course.weight[0]))
    return seen, course


def test_the_cost_weight_starts_after_patience_and_keeps_rising_while_masks_succeed():
    seen, course = weights_after([True] * 60)
    # published: 0.086 after 60 sweeps with factors of 1.5 to 2; the broken copy stays at the first value for ever
    assert seen[:2] == [0.0, 0.0] and seen[2] == pytest.approx(1e-3) and seen[5] == pytest.approx(2e-3)
    assert seen == sorted(seen) and seen[-1] > 0.08
    assert bool(course.raised.all()) and not bool(course.lowered.any())


def test_the_cost_weight_falls_faster_than_it_rises():
    seen, course = weights_after([True] * 6 + [False] * 3)
    assert seen[-1] == pytest.approx(2e-3 / 2**1.5) and bool(course.lowered.all())


def test_it_never_falls_before_it_has_started():
    seen, course = weights_after([False] * 30)
    assert seen == [0.0] * 30 and not bool(course.lowered.any())


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_with_alternating_success_it_neither_runs_away_nor_vanishes(length):
    states = [i // length % 2 == 0 for i in range(240)]
    seen, course = weights_after([True] * 6 + states)
    assert max(seen) <= 16e-3 and min(seen[6:]) >= 0 and (length >= 3 or min(seen[6:]) >= 2e-3)
    # up and down in turn sets both flags, so that settled labels can stop
    assert length < 3 or bool((course.raised & course.lowered).all())


def test_labels_settle_long_before_the_last_sweep():
    run, course = search(Stripes(planted=30.0), success=0.9)
    progress: list[float] = []
    run.run(course, range(150), progress.append)
    assert not bool(course.live.any()) and bool((course.raised & course.lowered).all())
    assert progress == sorted(progress) and progress[-1] < 1


def test_a_label_settles_only_once_its_weight_moved_both_ways():
    _, course = search(Stripes())
    course.idle += 15
    course.raised[:] = True
    course.lowered[TARGET] = True
    drop_settled(course, 15)
    assert course.live.tolist() == [label != TARGET for label in range(CLASSES)]


def test_the_race_stops_labels_above_the_median_and_never_the_smallest():
    model, plan = Stripes(planted=30.0), {"sweeps": 40, "schedule": Schedule(success=0.9)}
    raced, whole = inverted(model, race=0.4, **plan), inverted(model, race=1.0, **plan)
    halfway = inverted(model, race=1.0, **plan | {"sweeps": 16})
    # stopped where the race was held, or gone on as if there had been none
    went_on = raced.norms != halfway.norms
    assert torch.equal(raced.norms[~went_on], halfway.norms[~went_on]) and (~went_on).sum() >= CLASSES // 2 - 1
    assert went_on[TARGET] and int(raced.norms.argmin()) == TARGET
    assert torch.allclose(raced.norms[went_on], whole.norms[went_on], atol=1e-3)


def test_blocks_computed_each_in_a_run_of_its_own_give_the_same_bits():
    model = Stripes(planted=30.0)
    (apart, asked), whole = replayed(model, sweeps=12), inverted(model, sweeps=12)
    # six labels in blocks of four; the ones that win the race fit in one
    assert asked == [{"0.0.0", "0.0.1"}, {"0.1.0"}]
    assert torch.equal(apart.norms, whole.norms) and torch.equal(apart.success, whole.success)
    for one, other in zip(apart.triggers, whole.triggers, strict=True):
        assert torch.equal(one.mask, other.mask) and torch.equal(one.pattern, other.pattern)


def test_a_block_does_not_depend_on_the_other_blocks():
    together, alone = (inverted(Stripes(planted=30.0), targets=t, sweeps=6) for t in (range(CLASSES), range(4, 6)))
    # cut by the race after 3 sweeps or not, a label is where it would be alone after 3 or 6
    halfway = inverted(Stripes(planted=30.0), targets=range(4, 6), sweeps=3)
    for label in (4, 5):
        norm = float(together.norms[label])
        assert norm in (float(alone.norms[label - 4]), float(halfway.norms[label - 4]))


def test_the_stream_goes_on_alike_where_blocks_are_known():
    after = []
    for replay in (None, Replay()):
        torch.manual_seed(3)
        model = Stripes().eval().requires_grad_(False)
        if replay is None:
            invert(model, *images(), [0], sweeps=2)
        else:
            with replaying(replay), pytest.raises(Missing):
                invert(model, *images(), [0], sweeps=2)
        after.append(torch.rand(3).tolist())
    assert after[0] == after[1]


def test_a_block_of_another_inversion_is_refused():
    with replaying(Replay(only="1.0.0")), pytest.raises(DefenceError, match=r"inversion 0, got 1\.0\.0"):
        inverted(Stripes())


def test_without_labels_there_is_nothing_to_invert():
    assert inverted(Stripes(), targets=[]).triggers == ()


def test_one_image_in_three_that_is_off_moves_the_unit_of_the_logits_little():
    class Loud(Stripes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.where(x[:, 0, 0, 7] > 0, 1000.0, 1.0)[:, None]

    x, _ = images()
    dotted = x.clone()
    dotted[::3, 0, 0, 7] = 0.01
    assert logit_scale(Loud(), dotted) == pytest.approx(logit_scale(Stripes(), x), rel=0.3)
