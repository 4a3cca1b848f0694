"""Tests with real servers and clusters on loopback."""
