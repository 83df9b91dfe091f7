"""A broker, clients, a real service and front ends for the tests of this folder.

They run on the daemon's event loop, uvloop; those of the connection on asyncio's as well.
"""

import asyncio

import pytest
import uvloop
from prometheus_client import CollectorRegistry
from support.daemon import running_daemon
from support.eventually import eventually
from support.mosquitto import running_broker
from support.mqtt_client import TestClient

from daemon.config import MqttTable
from daemon.metrics import Metrics
from daemon.mqtt.frontend import MqttFrontEnd

STOP_S = 10
_BOTH_LOOPS = ("test_session", "test_stream", "test_opening")


def pytest_asyncio_loop_factories(config, item):
    loops = {"uvloop": uvloop.new_event_loop}
    if item.path.stem in _BOTH_LOOPS:
        loops["asyncio"] = asyncio.new_event_loop
    return loops


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


@pytest.fixture
async def service(demo_model):
    """The service of a real daemon that serves the demo model."""
    async with running_daemon([demo_model]) as daemon:
        yield daemon.service


@pytest.fixture
async def start_front_end(service, tmp_path):
    """Starts front ends on the service, connected unless told otherwise, and stops them."""
    front_ends = []

    async def start(
        broker,
        *,
        device_id="box-1",
        await_connection=True,
        documents=None,
        updates=None,
        pass_hint_on=None,
        **config,
    ):
        metrics = Metrics(CollectorRegistry())
        metrics.know_model("fashion")
        front_end = MqttFrontEnd(
            MqttTable(url=broker.url, **config),
            device_id=device_id,
            service=service,
            metrics=metrics,
            state_dir=tmp_path / device_id,
            documents=documents,
            updates=updates,
            pass_hint_on=pass_hint_on,
            backoff_first_s=0.01,
            backoff_most_s=0.05,
            settle_s=0.0,
        )
        front_ends.append(front_end)
        await front_end.start()
        if await_connection:
            await eventually(lambda: front_end.connected)
        return front_end

    yield start
    for front_end in front_ends:
        await front_end.stop(STOP_S)


@pytest.fixture
async def front_end(broker, start_front_end):
    """A connected front end with default settings, as `box-1`."""
    return await start_front_end(broker)


@pytest.fixture
def picture(demo_model):
    """A PNG of a bag."""
    return (demo_model / "samples" / "bag.png").read_bytes()
