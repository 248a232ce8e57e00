"""Presets: `--config NAME` finds `configs/NAME.yaml`."""
