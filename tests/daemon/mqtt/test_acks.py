"""Acknowledgements keep the order in which messages came."""

from hypothesis import given
from hypothesis import strategies as st

from daemon.mqtt.acks import OrderedAcks


def _acks(*mids):
    acks = OrderedAcks()
    for mid in mids:
        acks.received(mid)
    return acks


def test_the_earliest_message_is_acknowledged_at_once():
    assert _acks(1, 2).settle(1) == (1,)


def test_a_later_message_waits_for_the_earlier_one():
    acks = _acks(1, 2, 3)

    assert acks.settle(3) == ()
    assert acks.settle(2) == ()
    assert acks.settle(1) == (1, 2, 3)
    assert len(acks) == 0


def test_a_message_that_is_not_open_changes_nothing():
    acks = _acks(1)
    acks.settle(1)

    assert acks.settle(1) == ()
    assert acks.settle(9) == ()


@given(st.permutations(range(1, 13)))
def test_whatever_is_settled_first_leaves_in_the_order_of_arrival(order):
    acks = _acks(*range(1, 13))

    left = [mid for settled in order for mid in acks.settle(settled)]

    assert left == list(range(1, 13))
