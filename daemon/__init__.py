"""The service: HTTP and MQTT in front, models behind, one way in for both."""
