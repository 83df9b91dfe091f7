"""The MQTT front end."""
