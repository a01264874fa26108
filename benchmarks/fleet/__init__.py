"""The cost of a fleet: members without clients on one real broker, from 2 to 1,000 of them."""
