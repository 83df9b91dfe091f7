"""A broker and clients for the tests of this folder."""

import pytest
from support.mosquitto import running_broker
from support.mqtt_client import TestClient


@pytest.fixture
def broker(tmp_path):
    """A mosquitto of this test's own."""
    with running_broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def connect(broker):
    """Connects test clients and closes them at the end."""
    clients = []

    def connect(**facts):
        clients.append(TestClient(broker.port, **facts))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
