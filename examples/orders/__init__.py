"""A service, an application with the gateway in it, and a script that uses both."""
