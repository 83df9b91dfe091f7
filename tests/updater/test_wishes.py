"""What the fleet wishes of this device, as far as it may be followed."""

from __future__ import annotations

import msgspec
import pytest
from support.fleet import DAY_S, Fleet
from support.fleet import Device as Box

from updater.desired import Device, Group, encode_desired
from updater.wishes import MOST_MODELS, read_wishes

DEVICE = Device("box-1", {"ring": "canary"})
PLACES = ("/media/stick", "http://fleet/")


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path / "fleet")
    fleet.ship("digits", 2)
    return fleet


@pytest.fixture
def box(tmp_path, fleet):
    return Box(tmp_path / "box", fleet)


def wishes(box, fleet, *, now=None, objections=None, device=DEVICE):
    view = box.trust.refresh(str(fleet.path))
    return read_wishes(
        view,
        device,
        now=fleet.clock.now if now is None else now,
        places=PLACES,
        objection=lambda model: (objections or {}).get(model, ""),
    )


def forge(fleet, *groups):
    desired = fleet.repository.desired()
    fleet.forge_wish(
        encode_desired(msgspec.structs.replace(desired, serial=desired.serial + 1, groups=groups))
    )


def test_a_wish_says_what_where_and_by_which_metadata(box, fleet):
    wished = wishes(box, fleet)["digits"]

    assert (wished.version, wished.reason) == (2, "")
    assert wished.wish.target.path == "digits/digits-2.bundle"
    assert wished.wish.versions["root"] == 1
    assert wished.opens_at <= fleet.clock.now


def test_its_bundle_may_be_had_from_one_place_after_the_other(box, fleet):
    wished = wishes(box, fleet)["digits"]

    assert [wished.wish_from(place).source for place in range(4)] == [*PLACES, *PLACES]


def test_before_there_is_metadata_nothing_is_wished():
    assert read_wishes(None, DEVICE, now=0.0, places=PLACES, objection=str) == {}


def test_a_fleet_without_a_wish_wishes_nothing(tmp_path):
    fleet = Fleet(tmp_path / "empty")

    assert wishes(Box(tmp_path / "other", fleet), fleet) == {}


def test_labels_decide(box, fleet):
    forge(fleet, Group(rollout_id="r", models={"digits": 2}, match={"ring": "canary"}))

    assert set(wishes(box, fleet)) == {"digits"}
    assert wishes(box, fleet, device=Device("box-1")) == {}


def test_a_version_that_nobody_has_signed_keeps_no_other_model(box, fleet):
    forge(fleet, Group(rollout_id="r", models={"digits": 2, "faces": 1}))

    found = wishes(box, fleet)

    assert found["digits"].wish is not None
    assert found["faces"].wish is None
    assert "nobody has signed it" in found["faces"].reason
    assert found["faces"].wish_from(0) is None


def test_metadata_that_has_expired_brings_nothing_in(box, fleet):
    view = box.trust.refresh(str(fleet.path))
    late = fleet.clock.now + 8 * DAY_S

    found = read_wishes(view, DEVICE, now=late, places=PLACES, objection=lambda _: "")

    assert found["digits"].wish is None
    assert "expired" in found["digits"].reason


def test_a_place_on_the_disk_that_is_not_for_updates_is_left_alone(box, fleet):
    found = wishes(box, fleet, objections={"digits": "it is the operator's"})

    assert (found["digits"].wish, found["digits"].reason) == (None, "it is the operator's")


def test_more_models_than_a_device_holds_are_cut_off(box, fleet):
    forge(
        fleet,
        *(
            Group(rollout_id=f"r{part}", models={f"m{part}-{n:03}": 1 for n in range(600)})
            for part in range(2)
        ),
    )

    assert len(wishes(box, fleet)) == MOST_MODELS
