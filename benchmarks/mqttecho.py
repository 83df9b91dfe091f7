"""The MQTT baseline: a bare paho responder that answers with the payload it was sent. A program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessage


def answer(client: Client, _: object, message: MQTTMessage) -> None:
    """Publish the payload on the Response Topic, with the Correlation Data."""
    asked = message.properties
    if asked is None:
        return
    properties = Properties(PacketTypes.PUBLISH)
    properties.CorrelationData = asked.CorrelationData
    topic = asked.ResponseTopic
    client.publish(topic, message.payload, qos=message.qos, properties=properties)


def main() -> None:
    """Answer on a broker until stopped: `mqttecho PORT TOPIC`, the port one of loopback."""
    port, topic = int(sys.argv[1]), sys.argv[2]
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_connect = lambda *_: client.subscribe(topic, qos=1)
    client.on_message = answer
    client.connect("127.0.0.1", port)
    client.loop_forever()


if __name__ == "__main__":
    main()
