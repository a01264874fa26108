"""A service, an application that contains the gateway, and a script that uses both."""
