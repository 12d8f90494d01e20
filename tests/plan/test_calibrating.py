from __future__ import annotations

import numpy as np
import pytest

from ernie_export.calibrate.layer import observed
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan.calibrating import calibrating, inputs
from ernie_export.plan.reference import layer_bytes
from ernie_export.recipe import Calibration
from ernie_export.reference.layers import LayeredReference

SETTINGS = Calibration(method="gptq")


def test_what_is_gathered_of_a_layer_is_what_is_planned(nano) -> None:
    reference = LayeredReference(Checkpoint.open(nano))
    hidden = reference.embed(np.random.default_rng(0).integers(0, 1500, (4, 256)))
    for layer in range(2):  # a dense one and one of experts
        hessians = observed(reference, layer, hidden)
        gathered = {id(hessians.of(name)): len(hessians.of(name)) for name in hessians._tokens}
        assert sorted(gathered.values()) == sorted(inputs(reference.config, layer))


def test_the_layers_are_those_of_the_reference(nano) -> None:
    reference = LayeredReference(Checkpoint.open(nano))
    assert layer_bytes(reference.config) == [reference.layer_bytes(at) for at in range(reference.num_layers)]


def test_the_21b_is_calibrated_within_ten_gib_however_many_layers(the_21b: ErnieConfig) -> None:
    """One MoE layer in fp32 takes 3.2 GB, and H of its 64 experts 2.3 GB."""
    all_ = calibrating(the_21b, SETTINGS, 2)
    few = the_21b.model_copy(update={"num_hidden_layers": 4, "moe_layer_end_index": 3})
    assert 5.5e9 < all_ < 10 << 30
    assert calibrating(few, SETTINGS, 2) == all_


def test_more_text_takes_its_states_and_more_threads_the_rounding_of_more(the_21b: ErnieConfig) -> None:
    more = SETTINGS.model_copy(update={"tokens": 2 * SETTINGS.tokens})
    once, twice = (calibrating(the_21b, settings, 2) for settings in (SETTINGS, more))
    assert twice - once == 4 * SETTINGS.tokens * the_21b.hidden_size
    wide = the_21b.model_copy(update={"intermediate_size": 28672})
    assert calibrating(wide, SETTINGS, 2) > calibrating(wide, SETTINGS, 1) > 28672**2 * 28
    assert calibrating(the_21b, SETTINGS, 1) == pytest.approx(once, rel=0.01)
