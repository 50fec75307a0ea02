"""The pure core: no I/O, no clock, no logging; time is passed in."""
