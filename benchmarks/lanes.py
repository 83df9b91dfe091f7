"""The names of those who are compared: the lines of the table."""

RAW = "raw invoke()"
"""The bare runtime in a plain process: what no server can beat with as many instances."""
ECHO = "aiohttp echo"
"""What aiohttp takes to answer with the body it was sent: HTTP without a model."""

INFERD = "inferd"
"""With process isolation, the default."""
INFERD_THREAD = "inferd thread"
UNIX = "inferd unix socket"
MQTT = "inferd MQTT"
OURS = (INFERD, INFERD_THREAD, UNIX, MQTT)

MQTT_ECHO = "paho echo"
"""A bare paho responder that answers with the payload it was sent: MQTT without a model."""

MLSERVER = "MLServer"
LITSERVE = "LitServe"
TRITON = "Triton"
PEERS = (TRITON, MLSERVER, LITSERVE)
