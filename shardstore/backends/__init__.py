"""Backends: where the objects of a store lie."""
