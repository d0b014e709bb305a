"""Layers joined and made ready: named, numbered, their shapes known; what a pass needs; how a batch is cut."""
