"""The tests."""

PATIENCE = 3600  # seconds after which a process hangs, however much else the machine has to do
