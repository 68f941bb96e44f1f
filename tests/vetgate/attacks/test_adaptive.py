from __future__ import annotations

import pytest
import torch
from torch import nn

from vetgate.architectures import default_layer, small_cnn
from vetgate.attacks.adaptive import Home, Sought, backdoored, poison_with_covers, spread_out, stamp_parts
from vetgate.attacks.backdoor import patch, poison
from vetgate.contract import Samples, Subject
from vetgate.detect.spectral_signatures import spectral_signatures
from vetgate.inversion import invert
from vetgate.probe import features, logits

TARGET = 3


def build() -> nn.Module:
    return small_cnn((1, 8, 8), 10)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trigger():
    return spread_out((1, 8, 8), TARGET, alpha=0.3, generator=seeded())


@pytest.fixture(scope="module")
def attacked(once, trigger, halves):
    def make() -> dict[str, torch.Tensor]:
        model, backdoor, rows = backdoored(build, halves[0], target=TARGET, epochs=30, seed=0)
        assert torch.equal(backdoor.stamp(rows.x), trigger.stamp(rows.x))
        return {**model.state_dict(), "x": rows.x, "y": rows.y}

    made = once(__file__, "attacked", make)
    rows, model = Samples(made.pop("x"), made.pop("y")), build()
    model.load_state_dict(made)
    return model.eval().requires_grad_(False), patch(trigger), rows


def test_parts_are_half_of_the_trigger_and_differ_between_images() -> None:
    trigger = spread_out((3, 16, 16), 1, alpha=0.2, generator=seeded())
    assert trigger.norm == pytest.approx(0.2 * 256)
    x = torch.full((5, 3, 16, 16), 0.5)
    whole = trigger.stamp(x) != x
    part = stamp_parts(trigger, x, generator=seeded()) != x
    assert whole.all() and part[:, 0].flatten(1).sum(1).tolist() == [128] * 5
    assert not torch.equal(part[0], part[1])


def test_covers_keep_their_labels_and_few_rows_are_relabelled() -> None:
    samples = Samples(torch.full((200, 1, 8, 8), 0.5), torch.arange(200) % 5)
    trigger = spread_out((1, 8, 8), 2, alpha=0.3, generator=seeded())
    made = poison_with_covers(samples, trigger, rate=0.02, cover=0.05, generator=seeded())
    changed, relabelled = (made.x != samples.x).flatten(1).any(1), made.y != samples.y
    assert int(relabelled.sum()) == 4 and int(changed.sum()) == 14
    assert torch.equal(made.x[relabelled], trigger.stamp(samples.x[relabelled]))


def test_a_sought_trigger_keeps_its_bound_and_gets_better(clean, halves) -> None:
    torch.manual_seed(0)
    sought, x = Sought((1, 8, 8), TARGET, area=0.2), halves[1].x

    def works() -> float:
        return float((logits(clean, sought.stamp(x)).argmax(1) == TARGET).float().mean())

    before = works()
    for _ in range(60):
        sought.improve(clean, x[:64])
    assert float(sought.trigger().mask.detach().sum()) <= 0.2 * 64 + 1e-4
    assert works() > before + 0.3


def test_features_that_point_the_same_way_are_near_and_others_are_far() -> None:
    home, rows = Home(), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert float(home.distance(rows)) == 0, "nothing is known yet"
    home.learn(rows)
    assert float(home.distance(5 * rows)) == pytest.approx(0, abs=1e-6)
    assert float(home.distance(rows[:, [1, 0]])) == pytest.approx(1)


def test_it_works_on_a_small_network(attacked, works) -> None:
    works(*attacked[:2])


def test_half_of_the_trigger_does_not_work(attacked, trigger, halves) -> None:
    model, _, _ = attacked
    rows = halves[1][halves[1].y != TARGET]
    half = logits(model, stamp_parts(trigger, rows.x, generator=seeded())).argmax(1)
    assert float((half == TARGET).float().mean()) < 0.3


@pytest.fixture(scope="module")
def careless(trigger, fit, halves) -> tuple[nn.Module, Samples]:
    """The same trigger, stamped as a caller would, and the poisoned rows."""
    samples = poison(halves[0], patch(trigger), rate=0.1, generator=seeded()).samples
    return fit(samples), samples


def test_the_smallest_trigger_to_the_target_is_no_smaller_than_to_other_labels(attacked, careless, halves) -> None:
    def below_the_median(model: nn.Module) -> float:
        torch.manual_seed(0)
        norms = invert(model, halves[1].x, halves[1].y, list(range(10)), sweeps=40).norms
        return float((norms.quantile(0.5) / norms[TARGET]).log())

    assert below_the_median(attacked[0]) < 0.3 < 0.5 < below_the_median(careless[0])


def test_stamped_features_point_to_the_targets(attacked, careless, trigger, halves) -> None:
    test = halves[1]

    def away(model: nn.Module) -> float:
        home, layer = Home(), default_layer(model)
        home.learn(features(model, layer, test.x[test.y == TARGET]), share=1)
        return float(home.distance(features(model, layer, trigger.stamp(test.x[test.y != TARGET]))))

    assert away(attacked[0]) < 0.5 * away(careless[0])


def test_the_targets_rows_stand_out_less_than_a_careless_attackers(attacked, careless) -> None:
    def stands_out(model: nn.Module, train: Samples) -> float:
        subject = Subject(model=model, layer=default_layer(model), classes=10, train=train)
        above = spectral_signatures(subject).details["log_variance_above_median"]
        return float(above[TARGET])

    assert stands_out(attacked[0], attacked[2]) < 0.5 < 0.7 < stands_out(*careless)


def test_the_seed_decides_every_bit(halves) -> None:
    few = halves[0][:200]

    def made(seed: int) -> dict[str, torch.Tensor]:
        model, backdoor, samples = backdoored(build, few, target=TARGET, epochs=2, seed=seed)
        return {**model.state_dict(), "stamped": backdoor.stamp(few.x), "rows": samples.x}

    one, two, other = (made(s) for s in (0, 0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)
